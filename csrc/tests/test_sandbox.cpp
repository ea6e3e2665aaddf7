// The confinement, call by call: each check runs in a child of its own, because it cannot be undone.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <thread>

#include "sandbox/channel.h"
#include "sandbox/confine.h"

namespace sb = restrl::sandbox;

namespace {

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s\n", what.c_str());
}

// Runs `body` in a child; true if it returns true.
bool in_child(const std::function<bool()>& body) {
  const pid_t pid = fork();
  if (pid == 0) {
    bool good = false;
    try {
      good = body();
    } catch (const sb::SandboxError& error) {
      std::fprintf(stderr, "  %s\n", error.what());
    }
    _exit(good ? 0 : 1);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void* map(std::size_t bytes) { return mmap(nullptr, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }

bool refused(long result, int reason) { return result < 0 && errno == reason; }

[[maybe_unused]] void test_seccomp() {
  expect(in_child([] {
           sb::no_new_privileges();
           sb::apply_zygote_seccomp(true);
           sb::CandidateFilter().apply();
           return refused(fork(), EPERM) && refused(socket(AF_INET, SOCK_STREAM, 0), EPERM) &&
                  refused(kill(getppid(), 0), EPERM) && kill(getpid(), 0) == 0 &&
                  refused(syscall(SYS_memfd_create, "x", 0), EPERM) &&
                  refused(syscall(SYS_ptrace, 0, 0, 0, 0), EPERM) &&
                  refused(syscall(SYS_unshare, 0x10000000), EPERM) &&
                  refused(syscall(SYS_clone3, nullptr, 0), ENOSYS) &&
                  refused(syscall(425 /* io_uring_setup */, 1, nullptr), EPERM);
         }),
         "seccomp refuses processes, sockets, signals to others, memfd, ptrace, unshare, io_uring");
  expect(in_child([] {
           sb::no_new_privileges();
           sb::apply_zygote_seccomp(true);
           sb::CandidateFilter().apply();
           int pair[2], sum = 0;
           std::thread thread([&] { sum = 42; });
           thread.join();
           return sum == 42 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 &&
                  refused(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), EPERM) &&
                  send(pair[0], "x", 1, MSG_NOSIGNAL) == 1 &&
                  refused(send(pair[0], "x", 1, MSG_OOB), EPERM) &&
                  refused(syscall(SYS_sendmsg, pair[0], nullptr, 0), EPERM) &&
                  close(open("/dev/null", O_RDONLY)) == 0;
         }),
         "seccomp allows threads, files and stream pairs");
  expect(in_child([] {
           sb::no_new_privileges();
           sb::apply_zygote_seccomp(false);
           sb::CandidateFilter().apply();
           int ends[2];
           return pipe2(ends, 0) == 0 && fcntl(ends[0], F_GETFL) >= 0 && fcntl(ends[0], F_DUPFD, 9) == 9 &&
                  refused(fcntl(ends[0], F_SETOWN, getppid()), EPERM) &&
                  refused(fcntl(ends[0], 10 /* F_SETSIG */, SIGKILL), EPERM) &&
                  refused(fcntl(ends[0], 1024 /* F_SETLEASE */, F_RDLCK), EPERM) &&
                  refused(fcntl(ends[0], 1031 /* F_SETPIPE_SZ */, 1 << 20), EPERM) &&
                  refused(flock(ends[0], LOCK_EX), EPERM) && refused(fchmod(ends[0], 0600), EPERM) &&
                  refused(chmod("/dev/null", 0666), EPERM) && refused(truncate("/dev/null", 0), EPERM) &&
                  refused(open("/dev/null", O_ACCMODE), EPERM) &&
                  open("/dev/null", O_WRONLY | O_TRUNC) >= 0 &&
                  refused(utimensat(AT_FDCWD, "/dev/null", nullptr, 0), EPERM) &&
                  refused(socketpair(AF_INET, SOCK_STREAM, 0, ends), EPERM);
         }),
         "seccomp refuses modes, times and lengths of others' files, their locks, and signals through fcntl");
}

// As the zygote has it: made once, put on by one child after the other, each of which is another process.
[[maybe_unused]] void test_filter_of_several_candidates() {
  sb::CandidateFilter filter;
  for (int i = 0; i < 2; ++i) {
    expect(in_child([&] {
             sb::no_new_privileges();
             sb::apply_zygote_seccomp(true);
             filter.apply();
             return kill(getpid(), 0) == 0 && refused(kill(getppid(), 0), EPERM) &&
                    refused(syscall(SYS_tgkill, getppid(), getppid(), 0), EPERM) &&
                    refused(setsid(), EPERM) && refused(syscall(SYS_setns, 0, 0), EPERM);
           }),
           "a filter made before the fork lets each candidate signal itself only");
  }
}

[[maybe_unused]] void test_seccomp_with_children() {
  const auto confine = [] {
    sb::no_new_privileges();
    sb::apply_zygote_seccomp(true, true);
    sb::CandidateFilter(true).apply();
  };
  expect(in_child([&] {
           confine();
           return in_child([] { return setsid() >= 0 && kill(getpid(), 0) == 0; }) && in_child([] {
                    execl("/bin/true", "true", nullptr);
                    return false;
                  });
         }),
         "with children seccomp lets a candidate fork, execute and have sessions");
  expect(in_child([&] {
           confine();
           constexpr long kUser = 0x10000000, kPid = 0x20000000, kParent = 0x8000, kTrace = 0x2000;
           for (const long flags : {kUser, kPid, kParent, kTrace}) {
             if (!refused(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0), EPERM)) return false;
           }
           return refused(socket(AF_INET, SOCK_STREAM, 0), EPERM) &&
                  refused(socket(AF_UNIX, SOCK_STREAM, 0), EPERM) &&
                  refused(syscall(SYS_unshare, kUser), EPERM) && refused(syscall(SYS_setns, 0, 0), EPERM) &&
                  refused(syscall(SYS_mount, nullptr, "/tmp", "tmpfs", 0, nullptr), EPERM) &&
                  refused(syscall(SYS_ptrace, 0, 0, 0, 0), EPERM) &&
                  refused(syscall(SYS_bpf, 0, nullptr, 0), EPERM) &&
                  refused(syscall(SYS_keyctl, 0, 0), EPERM) &&
                  refused(syscall(SYS_memfd_create, "x", 0), EPERM) &&
                  refused(syscall(SYS_execveat, 0, "", nullptr, nullptr, 0), EPERM) &&
                  refused(syscall(428 /* open_tree */, 0, "/", 0), EPERM) &&
                  refused(syscall(429 /* move_mount */, 0, "", 0, "", 0), EPERM) &&
                  refused(syscall(425 /* io_uring_setup */, 1, nullptr), EPERM) &&
                  refused(syscall(SYS_clone3, nullptr, 0), ENOSYS);
         }),
         "with children seccomp refuses namespaces, mounts, sockets, tracing and kernels' other doors");
}

void test_landlock() {
  if (sb::landlock_version() == 0) {
    std::puts("no Landlock here: not tested");
    return;
  }
  char folder[] = "/tmp/restrl-test-XXXXXX";
  if (mkdtemp(folder) == nullptr) std::abort();
  const std::string inside = std::string(folder) + "/file";
  expect(in_child([&] {
           const int ruleset = sb::make_landlock_ruleset({"/usr", "/nonexistent"}, {folder});
           sb::no_new_privileges();
           sb::apply_landlock(ruleset);
           const int fd = open(inside.c_str(), O_CREAT | O_RDWR, 0600);
           return fd >= 0 && ftruncate(fd, 10) == 0 && unlink(inside.c_str()) == 0 &&
                  open("/usr", O_RDONLY | O_DIRECTORY) >= 0 &&
                  refused(open("/etc/passwd", O_RDONLY), EACCES) &&
                  refused(open("/usr/x", O_CREAT | O_WRONLY, 0600), EACCES);
         }),
         "landlock opens what is named and nothing else");
  rmdir(folder);
}

void test_limits() {
  expect(in_child([] {
           sb::Params params;
           params.namespaces = false;
           params.memory_bytes = sb::own_address_space() + (64 << 20);
           params.cpu_seconds = 7;
           sb::set_common_limits();
           sb::set_limits(params, 1 << 16);
           rlimit cpu{}, core{};
           getrlimit(RLIMIT_CPU, &cpu);
           getrlimit(RLIMIT_CORE, &core);
           return cpu.rlim_cur == 7 && core.rlim_cur == 0 && map(128 << 20) == MAP_FAILED &&
                  map(16 << 20) != MAP_FAILED;
         }),
         "limits hold for memory, CPU time and core dumps");
}

void test_channel() {
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) std::abort();
  std::string got;
  expect(sb::receive_message(pair[1], got, 10, 100, -1) == sb::Received::timeout,
         "nothing to read is a timeout");
  expect(sb::send_message(pair[0], "hello", 5, 1000), "a message goes out");
  expect(sb::receive_message(pair[1], got, 1000, 100, -1) == sb::Received::message && got == "hello",
         "and comes in");
  const std::string large(1 << 22, 'x');
  std::thread sender(
      [&] { expect(sb::send_message(pair[0], large.data(), large.size(), 5000), "a large one"); });
  expect(sb::receive_message(pair[1], got, 5000, 1 << 23, -1) == sb::Received::message && got == large,
         "whole");
  sender.join();
  expect(!sb::send_message(pair[0], large.data(), large.size(), 50), "nobody reads: the sender gives up");
  close(pair[0]);
  close(pair[1]);

  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) std::abort();
  const unsigned length = 1000;
  expect(write(pair[0], &length, sizeof length) == sizeof length, "a head alone");
  expect(sb::receive_message(pair[1], got, 20, 100, -1) == sb::Received::too_long, "longer than allowed");
  expect(write(pair[0], &length, sizeof length) == sizeof length, "a head alone");
  expect(sb::receive_message(pair[1], got, 20, 2000, -1) == sb::Received::cut,
         "a message that does not go on");
  close(pair[0]);
  expect(sb::receive_message(pair[1], got, 20, 2000, -1) == sb::Received::closed, "the other side is gone");
  close(pair[1]);

  int keeper[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, keeper) != 0)
    std::abort();
  close(keeper[0]);
  expect(sb::receive_message(pair[1], got, 5000, 100, keeper[1]) == sb::Received::orphaned,
         "nobody wants the answer");
}

}  // namespace

int main() {
#ifndef __SANITIZE_THREAD__  // whose runtime makes system calls that no candidate needs
  test_seccomp();
  test_filter_of_several_candidates();
  test_seccomp_with_children();
#endif
  test_landlock();
  test_limits();
  test_channel();
  if (failures == 0) std::puts("ok");
  return failures == 0 ? 0 : 1;
}
