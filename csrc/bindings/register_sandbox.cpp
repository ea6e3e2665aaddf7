// The codec, the messages and the zygote's loop. Used by the judge and the zygote, which load the module of
// these without the rest of restrl.
#include <Python.h>
#include <fcntl.h>
#include <pybind11/eval.h>
#include <pybind11/stl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "codec.h"
#include "forkable.h"
#include "register.h"
#include "sandbox/channel.h"
#include "sandbox/confine.h"
#include "sandbox/zygote.h"

namespace py = pybind11;
namespace sb = restrl::sandbox;

namespace restrl {
namespace {

sb::Params params_from(const py::dict& d) {
  sb::Params p;
  p.namespaces = d["namespaces"].cast<bool>();
  p.landlock = d["landlock"].cast<bool>();
  p.seccomp = d["seccomp"].cast<bool>();
  p.drop_user = d["drop_user"].cast<bool>();
  for (py::handle path : d["readable"]) p.readable.push_back(path.cast<std::string>());
  p.children = d["children"].cast<bool>();
  for (py::handle path : d["programs"]) p.programs.push_back(path.cast<std::string>());
  p.memory_bytes = d["memory_bytes"].cast<std::uint64_t>();
  p.cpu_seconds = d["cpu_seconds"].cast<std::uint64_t>();
  p.scratch_bytes = d["scratch_bytes"].cast<std::uint64_t>();
  p.processes = d["processes"].cast<std::uint64_t>();
  return p;
}

// Runs the zygote's loop. Returns only in a candidate: confined, its channel on descriptor 3.
// The interpreter must be single-threaded.
void serve(int control, const py::dict& settings) {
  const sb::Zygote* zygote = nullptr;  // never deleted: a child would pay for the pages it touches
  try {
    zygote = new sb::Zygote(control, params_from(settings));
  } catch (const sb::SandboxError& error) {
    const std::string text = error.what();
    sb::send_message(control, text.data(), text.size(), 1000);
    _exit(1);
  }
  make_forks_cheap();
  if (!sb::send_message(control, "", 0, 1000)) _exit(0);  // ready
  sb::Request request;
  while (zygote->receive(request)) {
    zygote->before_fork();
    PyOS_BeforeFork();
    const pid_t pid = fork();
    if (pid == 0) {
      PyOS_AfterFork_Child();
      try {
        zygote->in_child(request);
      } catch (const sb::SandboxError& error) {
        sb::send_message(request.channel, error.what(), std::char_traits<char>::length(error.what()), 1000);
        _exit(sb::kSetUpFailed);
      }
      return;
    }
    PyOS_AfterFork_Parent();
    if (pid < 0) throw sb::SandboxError("fork");
    zygote->in_parent(pid, request);
  }
  _exit(0);
}

py::object receive(int fd, double timeout, std::uint64_t max_bytes, int keeper) {
  std::string out;
  sb::Received got;
  {
    py::gil_scoped_release release;
    got = sb::receive_message(fd, out, timeout < 0 ? -1 : static_cast<std::int64_t>(timeout * 1000),
                              max_bytes, keeper);
  }
  switch (got) {
    case sb::Received::message:
      return py::bytes(out);
    case sb::Received::closed:
      return py::str("closed");
    case sb::Received::timeout:
      return py::str("timeout");
    case sb::Received::cut:
      return py::str("cut");
    case sb::Received::too_long:
      return py::str("too_long");
    case sb::Received::orphaned:
      return py::str("orphaned");
  }
  return py::none();
}

bool send_bytes(int fd, const py::bytes& data, double timeout) {
  const char* text = PyBytes_AS_STRING(data.ptr());
  const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(data.ptr()));
  py::gil_scoped_release release;
  return sb::send_message(fd, text, size, timeout < 0 ? -1 : static_cast<std::int64_t>(timeout * 1000));
}

// What a call's `target` names: the number of a handle, or an expression of the program.
py::object called(const py::object& target, const py::dict& names, const py::list& handles) {
  if (PyLong_CheckExact(target.ptr())) return handles[target.cast<std::size_t>()];
  if (PyObject* found = PyDict_GetItemWithError(names.ptr(), target.ptr()))
    return py::reinterpret_borrow<py::object>(found);
  if (PyErr_Occurred() != nullptr) throw py::error_already_set();
  return py::eval(target.cast<py::str>(), names);
}

// What answers to calls go through where they are no exact plain data, and what was raised.
struct Answers {
  int channel;
  py::object send_value, send_error;
  std::uint64_t max_bytes;

  // The result of `call`, a new reference or null, goes to the judge.
  template <typename Call>
  void send(const Call& call) const {
    py::object value;
    try {
      PyObject* got = call();
      if (got == nullptr) throw py::error_already_set();
      value = py::reinterpret_steal<py::object>(got);
    } catch (py::error_already_set& error) {
      send_error(error.value(), "raise");
      return;
    }
    std::string data;
    try {
      data = encode_plain(py::make_tuple("value", value), py::none(), max_bytes);
    } catch (const CodecError&) {  // without a hook nothing was changed yet
      send_value(value);
      return;
    }
    py::gil_scoped_release release;
    if (!sb::send_message(channel, data.data(), data.size(), -1)) _exit(0);
  }
};

// A candidate's loop: answers calls (target, args, kwargs) until the judge hangs up.
void answer_calls(int channel, const py::dict& names, const py::list& handles, const py::object& restore,
                  const py::object& send_value, const py::object& send_error, std::uint64_t max_bytes) {
  const Answers answers{channel, send_value, send_error, max_bytes};
  for (;;) {
    std::string data;
    {
      py::gil_scoped_release release;
      if (sb::receive_message(channel, data, -1, 1u << 30, -1) != sb::Received::message) return;
    }
    answers.send([&] {
      const auto call = decode_plain(data.data(), data.size(), restore, ~std::uint64_t{0}).cast<py::tuple>();
      const py::object function = called(call[0], names, handles), args = call[1], kwargs = call[2];
      return PyObject_Call(function.ptr(), args.ptr(), kwargs.ptr());
    });
  }
}

// One function, called with the arguments of every case.
void answer_cases(int channel, const py::object& function, const py::list& cases,
                  const py::object& send_value, const py::object& send_error, std::uint64_t max_bytes) {
  const Answers answers{channel, send_value, send_error, max_bytes};
  for (const py::handle args : py::iter(cases)) {
    answers.send(
        [&] { return PyObject_Call(function.ptr(), py::tuple(args.cast<py::list>()).ptr(), nullptr); });
  }
}

std::pair<int, int> socketpair_closed_on_exec() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) throw sb::SandboxError("socketpair");
  for (int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
  return {ends[0], ends[1]};
}

int ask(int control, bool scratch, std::uint32_t cpu_seconds, const std::vector<int>& fds) {
  sb::Asked asked;
  asked.kind = scratch ? 's' : 'f';
  asked.cpu_seconds = cpu_seconds;
  return sb::ask(control, asked, fds);
}

// A report of the zygote; false for none in time. Throws where the zygote is gone.
template <typename Report>
bool report(int control, double timeout, Report& out, int& fd) {
  const char kind = out.kind;
  sb::Received got;
  {
    py::gil_scoped_release release;
    got = sb::receive_report(control, &out, sizeof out, static_cast<std::int64_t>(timeout * 1000), fd);
  }
  if (got == sb::Received::timeout) return false;
  if (got != sb::Received::message || out.kind != kind) throw sb::SandboxError("zygote", "it ended");
  return true;
}

py::object forked(int control, double timeout) {
  sb::Forked about;
  int pidfd = -1;
  if (!report(control, timeout, about, pidfd)) return py::none();
  return py::make_tuple(pidfd >= 0 ? pidfd : -about.pid, static_cast<double>(about.at_ns) / 1e9);
}

py::object ended(int control, double timeout) {
  sb::Ended about;
  int fd = -1;
  if (!report(control, timeout, about, fd)) return py::none();
  const std::int64_t code = about.code, cpu_us = about.cpu_us, peak = std::int64_t{about.max_rss} << 10;
  const bool confined = about.confined;
  return py::make_tuple(code, cpu_us, peak, confined);
}

}  // namespace

void register_sandbox(py::module_& m) {
  py::register_exception<sb::SandboxError>(m, "SandboxError", PyExc_OSError);
  static py::exception<CodecError> unserialisable(m, "Unserialisable", PyExc_ValueError);
  static py::exception<CodecTooLarge> too_large(m, "TooLarge", unserialisable);
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const CodecTooLarge& error) {
      py::set_error(too_large, error.what());
    } catch (const CodecError& error) {
      py::set_error(unserialisable, error.what());
    }
  });

  m.def(
      "encode",
      [](py::handle value, py::object hook, std::uint64_t max_bytes) {
        return py::bytes(encode_plain(value, hook, max_bytes));
      },
      py::arg("value"), py::arg("hook") = py::none(), py::arg("max_bytes") = 1 << 30,
      "Plain data as bytes. Raises Unserialisable, or TooLarge past `max_bytes`.");
  m.def(
      "decode",
      [](const py::bytes& data, py::object hook, std::uint64_t max_objects) {
        return decode_plain(PyBytes_AS_STRING(data.ptr()),
                            static_cast<std::size_t>(PyBytes_GET_SIZE(data.ptr())), hook, max_objects);
      },
      py::arg("data"), py::arg("hook") = py::none(), py::arg("max_objects") = ~std::uint64_t{0},
      "The data in `data`; safe on any bytes. Raises Unserialisable, or TooLarge past `max_objects`.");
  m.def("receive", &receive, py::arg("fd"), py::arg("timeout") = -1.0, py::arg("max_bytes") = 1u << 30,
        py::arg("keeper") = -1,
        "One message as bytes, or why there is none: 'closed', 'timeout' (seconds), 'cut' (timeout within a "
        "message), 'too_long', 'orphaned' "
        "(the "
        "process behind `keeper` hung up).");
  m.def("send", &send_bytes, py::arg("fd"), py::arg("data"), py::arg("timeout") = -1.0,
        "Write one message; False where the other side is gone or does not read in time.");
  m.def("socketpair", &socketpair_closed_on_exec, "Two descriptors, connected.");
  m.def("hang_up", [](int fd) { shutdown(fd, SHUT_WR); }, "Nothing more is written to `fd`; it can be read.");
  m.def("ask", &ask, py::arg("control"), py::arg("scratch"), py::arg("cpu_seconds"), py::arg("fds"),
        "Ask a zygote for a candidate that gets `fds` as stdin and stdout: our end of its channel.");
  m.def("forked", &forked, py::arg("control"), py::arg("timeout"),
        "(pidfd, or its number, negative; monotonic seconds) of the candidate asked for; None: not in time.");
  m.def("ended", &ended, py::arg("control"), py::arg("timeout"),
        "(exit code or -signal, CPU microseconds, peak bytes, whether it was confined); None: not in time.");
  m.def("answer_calls", &answer_calls, py::arg("channel"), py::arg("names"), py::arg("handles"),
        py::arg("restore"), py::arg("send_value"), py::arg("send_error"), py::arg("max_bytes"),
        "A candidate's loop: answer calls until the judge hangs up.");
  m.def("answer_cases", &answer_cases, py::arg("channel"), py::arg("function"), py::arg("cases"),
        py::arg("send_value"), py::arg("send_error"), py::arg("max_bytes"),
        "Answer one function's calls, a list of arguments each.");
  m.def("serve", &serve, py::arg("control"), py::arg("settings"),
        "The zygote's loop; returns in each candidate, confined, its channel on descriptor 3.");
  m.attr("confines") = bool(RESTRL_CONFINEMENT);  // built with namespaces, Landlock and seccomp
  m.def("landlock_version", &sb::landlock_version, "Version of Landlock in this kernel, 0 for none.");
  m.def("allocate_in_huge_pages", &allocate_in_huge_pages, "At the start of a process that forks.");
  m.def("own_address_space", &sb::own_address_space, "Bytes of address space this process has mapped.");
  m.def("die_with_parent", &sb::die_with_parent, "End this process when the thread that started it ends.");
}

}  // namespace restrl
