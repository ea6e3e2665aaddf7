// Tier 1: a process tree, a file system and a network of its own, entered once by the zygote.
#include <fcntl.h>
#include <grp.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdlib>

#include "sandbox/confine.h"

namespace restrl::sandbox {
namespace {

constexpr unsigned kInside = 1000;  // the user and group a candidate sees itself as
constexpr long kMountSetattr = 442, kOpenTree = 428, kMoveMount = 429;
constexpr unsigned kCloneTree = 1, kRecursive = 0x8000, kEmptyPath = 4;  // flags of the last two

struct MountAttr {
  std::uint64_t set, clear, propagation, userns;
};
constexpr std::uint64_t kReadOnly = 1, kNoSuid = 2, kNoDev = 4;

void must(bool done, const std::string& step) {
  if (!done) throw SandboxError(step);
}

void write_text(int proc, const char* path, const std::string& text) {
  const int fd = openat(proc, path, O_WRONLY | O_CLOEXEC);
  must(fd >= 0, path);
  const bool done = write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  const int reason = errno;
  close(fd);
  errno = reason;
  must(done, path);
}

// Directories on the way to what is bound can be passed, not listed: their names are the machine's.
void make_directories(const std::string& path, mode_t mode = 0111) {
  for (std::size_t at = path.find('/', 1);; at = path.find('/', at + 1)) {
    const std::string part = path.substr(0, at);
    if (mkdir(part.c_str(), mode) != 0 && errno != EEXIST) throw SandboxError("mkdir " + part);
    if (at == std::string::npos) return;
  }
}

void set_attributes(const std::string& path, std::uint64_t attributes, bool recursive) {
  const MountAttr attr{attributes, 0, 0, 0};
  const unsigned flags = recursive ? kRecursive : 0;
  must(syscall(kMountSetattr, AT_FDCWD, path.c_str(), flags, &attr, sizeof attr) == 0,
       "attributes of " + path);
}

// A place at `target` for a mount of what `info` describes.
void make_place(const struct stat& info, const std::string& target) {
  if (S_ISDIR(info.st_mode)) {
    make_directories(target);
  } else {
    make_directories(target.substr(0, target.rfind('/')));
    const int fd = open(target.c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    must(fd >= 0, "create " + target);
    close(fd);
  }
}

// Binds `source` to the same place below `root`; a symbolic link's target appears under the link's own name.
void bind(const std::string& source, const std::string& target, std::uint64_t attributes) {
  struct stat info{};
  if (stat(source.c_str(), &info) != 0) return;
  make_place(info, target);
  must(mount(source.c_str(), target.c_str(), nullptr, MS_BIND | MS_REC, nullptr) == 0, "bind " + source);
  set_attributes(target, attributes, true);
}

std::string real(const std::string& path) {
  char buffer[PATH_MAX];
  return realpath(path.c_str(), buffer) != nullptr ? std::string(buffer) : path;
}

std::vector<std::string> real_paths(const std::vector<std::string>& paths) {
  std::vector<std::string> reals;
  reals.reserve(paths.size());
  for (const std::string& path : paths) reals.push_back(real(path));
  return reals;
}

// Whether `kNobody` can read what lies at `path`, once it gets there.
bool open_to_all(const std::string& path) {
  struct stat info{};
  if (stat(path.c_str(), &info) != 0) return true;  // not there: not missed
  const mode_t wanted = S_ISDIR(info.st_mode) ? S_IROTH | S_IXOTH : S_IROTH;
  return (info.st_mode & wanted) == wanted;
}

void build_root(const std::vector<std::string>& readable) {
  const std::vector<std::string> sources = real_paths(readable);  // before the root is another one

  must(mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0, "private mounts");
  // Two steps, because the new root is built from paths of the old one, /tmp included.
  must(mount("restrl", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755") == 0, "mount tmpfs");
  must(mkdir("/tmp/old", 0755) == 0 && mkdir("/tmp/new", 0755) == 0, "mkdir");
  must(chdir("/tmp") == 0 && syscall(SYS_pivot_root, "/tmp", "/tmp/old") == 0 && chdir("/") == 0,
       "pivot_root");
  must(mount("restrl", "/new", "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755") == 0, "mount root");
  make_directories("/new/tmp", 0755);  // before what lies below it: this one can be listed
  for (std::size_t i = 0; i < readable.size(); ++i) {
    bind("/old" + sources[i], "/new" + readable[i], kReadOnly | kNoSuid | kNoDev);
  }
  // Read-only too: that does not keep a device from being written to, only its mode and times from change.
  for (const char* device : {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}) {
    bind(std::string("/old") + device, std::string("/new") + device, kReadOnly | kNoSuid);
  }
  must(chdir("/new") == 0 && syscall(SYS_pivot_root, ".", ".") == 0, "second pivot_root");
  must(umount2(".", MNT_DETACH) == 0 && chdir("/") == 0, "leave the old root");
  set_attributes("/", kReadOnly | kNoSuid | kNoDev, false);
}

[[noreturn]] void keep(pid_t init) {
  // Holds nothing but the wait: the judge sees one child, and that child's end ends the namespace.
  syscall(SYS_close_range, 0u, ~0u, 0u);
  int status = 0;
  while (waitpid(init, &status, 0) < 0 && errno == EINTR) {
  }
  _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

}  // namespace

void become_nobody() {
  // EINVAL: no such user here. This root is one of a user namespace (a rootless container), and stays it.
  if (setresgid(kNobody, kNobody, kNobody) != 0 && errno == EINVAL) return;
  must(getegid() == kNobody, "setresgid");
  must(setgroups(0, nullptr) == 0 || errno == EPERM, "setgroups");  // EPERM: refused in this user namespace
  if (setresuid(kNobody, kNobody, kNobody) != 0 && errno == EINVAL) return;
  must(geteuid() == kNobody, "setresuid");
  // A change of user makes /proc/self root's own; the id maps are written there. It also clears the death
  // signal.
  must(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0, "dumpable");
  die_with_parent();
}

void mount_scratch(const Params& params) {
  struct Hidden {
    std::string path;
    int tree;
    struct stat info;
  };
  std::vector<Hidden> hidden;  // an environment below /tmp: taken off before, and put back on what hides it
  for (const std::string& path : params.readable) {
    if (path.rfind("/tmp/", 0) != 0) continue;
    Hidden one{path, -1, {}};
    if (stat(path.c_str(), &one.info) != 0) continue;
    one.tree =
        static_cast<int>(syscall(kOpenTree, AT_FDCWD, path.c_str(), kCloneTree | kRecursive | O_CLOEXEC));
    must(one.tree >= 0, "open the tree of " + path);
    hidden.push_back(one);
  }
  const std::string options = "mode=777,nr_inodes=4096,size=" + std::to_string(params.scratch_bytes);
  must(mount("scratch", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, options.c_str()) == 0, "scratch");
  for (const Hidden& one : hidden) {
    make_place(one.info, one.path);
    must(syscall(kMoveMount, one.tree, "", AT_FDCWD, one.path.c_str(), kEmptyPath) == 0, "move " + one.path);
    close(one.tree);
  }
}

int enter_namespaces(const Params& params) {
  // The new root has no /proc: what is needed of it is reached from here.
  const int proc = open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC);
  must(proc >= 0, "open /proc");

  // Root builds the new root as root and gives itself up after: below it, paths are short, so that a Python
  // in a directory of root's own (/root) can be reached by `kNobody`.
  bool built = false;
  if (geteuid() == 0) {
    const std::vector<std::string> sources = real_paths(params.readable);
    const bool readable = std::all_of(sources.begin(), sources.end(), open_to_all);
    if (readable && unshare(CLONE_NEWNS) == 0) {
      build_root(params.readable);
      built = true;
    }
    if (built || params.drop_user) become_nobody();
  }

  const unsigned uid = geteuid(), gid = getegid();
  must(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) == 0,
       "new namespaces");
  const std::string inside = std::to_string(kInside) + " ";
  write_text(proc, "self/setgroups", "deny");
  write_text(proc, "self/uid_map", inside + std::to_string(uid) + " 1");
  write_text(proc, "self/gid_map", inside + std::to_string(gid) + " 1");
  must(sethostname("sandbox", 7) == 0, "host name");

  const pid_t init = fork();
  must(init >= 0, "fork of the namespace's init");
  if (init > 0) keep(init);
  die_with_parent();
  const int own = openat(proc, "self/ns/pid", O_RDONLY | O_CLOEXEC);
  must(own >= 0, "open the pid namespace");
  close(proc);
  if (!built) build_root(params.readable);
  return own;
}

}  // namespace restrl::sandbox
