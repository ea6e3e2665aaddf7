// Landlock: file system access by path, TCP by port, signals and abstract sockets by domain.
// The numbers are written out because the build machine's headers may be older than the kernel it runs on.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "sandbox/confine.h"

namespace restrl::sandbox {
namespace {

constexpr long kCreateRuleset = 444, kAddRule = 445, kRestrictSelf = 446;  // same on every architecture
constexpr unsigned kVersionFlag = 1;
constexpr int kPathBeneath = 1;

struct RulesetAttr {
  std::uint64_t fs, net, scoped;
};

struct __attribute__((packed)) PathBeneathAttr {
  std::uint64_t allowed;
  std::int32_t parent;
};

constexpr std::uint64_t kExecute = 1 << 0, kWriteFile = 1 << 1, kReadFile = 1 << 2, kReadDir = 1 << 3;
constexpr std::uint64_t kTruncate = 1 << 14;  // version 3
constexpr std::uint64_t kFileRights = kExecute | kWriteFile | kReadFile | kTruncate;
constexpr std::uint64_t kVersion1 = (1 << 13) - 1;
constexpr std::uint64_t kMakeChar = 1 << 6, kMakeSock = 1 << 9, kMakeFifo = 1 << 10, kMakeBlock = 1 << 11;

std::uint64_t known_rights(int version) {
  std::uint64_t rights = kVersion1;
  if (version >= 2) rights |= 1 << 13;  // refer: rename across directories
  if (version >= 3) rights |= kTruncate;
  if (version >= 5) rights |= 1 << 15;  // ioctl on devices
  return rights;
}

void allow(int ruleset, const std::string& path, std::uint64_t rights) {
  const int fd = open(path.c_str(), O_PATH | O_CLOEXEC);
  if (fd < 0) {
    if (errno == ENOENT) return;  // nothing there: nothing to allow
    throw SandboxError("open " + path);
  }
  struct stat info{};
  if (fstat(fd, &info) == 0 && !S_ISDIR(info.st_mode)) rights &= kFileRights;
  const PathBeneathAttr rule{rights, fd};
  const long done = syscall(kAddRule, ruleset, kPathBeneath, &rule, 0);
  const int reason = errno;
  close(fd);
  errno = reason;
  if (done != 0) throw SandboxError("landlock rule for " + path);
}

}  // namespace

int landlock_version() {
  const long version = syscall(kCreateRuleset, nullptr, 0, kVersionFlag);
  return version < 0 ? 0 : static_cast<int>(version);
}

int make_landlock_ruleset(const std::vector<std::string>& readable, const std::vector<std::string>& writable,
                          const std::vector<std::string>& executable) {
  const int version = landlock_version();
  if (version == 0) throw SandboxError("landlock", "not in this kernel");
  RulesetAttr attr{known_rights(version), 0, 0};
  std::size_t size = sizeof attr.fs;
  if (version >= 4) {
    attr.net = 3;  // bind and connect over TCP
    size = 2 * sizeof attr.fs;
  }
  if (version >= 6) {
    attr.scoped = 3;  // abstract unix sockets, signals
    size = sizeof attr;
  }
  const long ruleset = syscall(kCreateRuleset, &attr, size, 0);
  if (ruleset < 0) throw SandboxError("landlock ruleset");
  const int fd = static_cast<int>(ruleset);
  for (const std::string& path : readable) allow(fd, path, kReadFile | kReadDir);
  for (const std::string& path : executable) allow(fd, path, kReadFile | kReadDir | kExecute);
  const std::uint64_t change = kVersion1 & ~(kExecute | kMakeChar | kMakeSock | kMakeFifo | kMakeBlock);
  for (const std::string& path : writable) allow(fd, path, (change | kTruncate) & known_rights(version));
  return fd;
}

void apply_landlock(int ruleset) {
  if (syscall(kRestrictSelf, ruleset, 0) != 0) throw SandboxError("landlock");
}

}  // namespace restrl::sandbox
