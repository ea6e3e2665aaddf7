// The system calls a candidate may make. An allow list: what is not named fails with EPERM.
//
// What an allowed call could do to others decides which of its arguments are let through; each restriction
// below says what it is against. There are two filters, and a call must pass both: the zygote puts the long
// one on itself once, and every candidate a short one that takes away what only a zygote needs (to install a
// filter costs time for every instruction of it). Landlock is no second wall for calls that change a file's
// mode or times by path, nor (before its version 6) for signals.
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <utility>

#include "sandbox/confine.h"

namespace restrl::sandbox {
namespace {

#if defined(__x86_64__)
constexpr unsigned kArch =
    AUDIT_ARCH_X86_64;  // x32 calls carry a bit in their number and match nothing below
#elif defined(__aarch64__)
constexpr unsigned kArch = AUDIT_ARCH_AARCH64;
#else
#error "no system call list for this architecture"
#endif

constexpr int kAllowed[] = {
    // memory and threads
    SYS_mmap,
    SYS_munmap,
    SYS_mprotect,
    SYS_mremap,
    SYS_brk,
    SYS_madvise,
    SYS_futex,
    SYS_set_robust_list,
    SYS_set_tid_address,
    SYS_rseq,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_membarrier,
    SYS_exit,
    SYS_exit_group,
    SYS_restart_syscall,
    SYS_mincore,
    SYS_getcpu,
    // files
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_lseek,
    SYS_close,
    SYS_close_range,
    SYS_fstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_readlinkat,
    SYS_getdents64,
    SYS_getcwd,
    SYS_chdir,
    SYS_fchdir,
    SYS_dup,
    SYS_dup3,
    SYS_fsync,
    SYS_fdatasync,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_mkdirat,
    SYS_unlinkat,
    SYS_renameat2,
    SYS_linkat,
    SYS_symlinkat,
    SYS_umask,
    SYS_statfs,
    SYS_fstatfs,
    SYS_sendfile,
    SYS_copy_file_range,
    SYS_fadvise64,
    // waiting and pipes
    SYS_ppoll,
    SYS_pselect6,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_eventfd2,
    SYS_pipe2,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
    SYS_nanosleep,
    SYS_clock_nanosleep,
    SYS_shutdown,
    SYS_getsockname,
    SYS_getpeername,
    SYS_wait4,
    SYS_waitid,
    // clocks, signals to oneself, who and where am I
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_gettimeofday,
    SYS_setitimer,
    SYS_getitimer,
    SYS_timer_create,
    SYS_timer_settime,
    SYS_timer_gettime,
    SYS_timer_delete,
    SYS_timer_getoverrun,
    SYS_times,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigpending,
    SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait,
    SYS_sigaltstack,
    SYS_getpid,
    SYS_getppid,
    SYS_gettid,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getgroups,
    SYS_getresuid,
    SYS_getresgid,
    SYS_getpgid,
    SYS_getsid,
    SYS_getrlimit,
    SYS_getrusage,
    SYS_getpriority,
    SYS_uname,
    SYS_sysinfo,
    SYS_getrandom,
    SYS_capget,
#if defined(__x86_64__)
    SYS_stat,
    SYS_lstat,
    SYS_access,
    SYS_readlink,
    SYS_getdents,
    SYS_dup2,
    SYS_mkdir,
    SYS_rmdir,
    SYS_unlink,
    SYS_rename,
    SYS_renameat,
    SYS_link,
    SYS_symlink,
    SYS_poll,
    SYS_select,
    SYS_epoll_create,
    SYS_epoll_wait,
    SYS_eventfd,
    SYS_pipe,
    SYS_pause,
    SYS_alarm,
    SYS_time,
    SYS_getpgrp,
#endif
};

// With a file system of its own a candidate may change modes, times and lengths there. Landlock does not
// cover the first two, nor, before its version 3, the third: without namespaces they would reach every file
// of the user.
constexpr int kOnOwnFiles[] = {
    SYS_truncate, SYS_fchmod, SYS_fchmodat, SYS_utimensat,
#if defined(__x86_64__)
    SYS_chmod,    SYS_utime,  SYS_utimes,
#endif
};

// Where a candidate may start programs, in a pid namespace of its own. Not `execveat`: descriptors as
// programs.
constexpr int kForChildren[] = {
    SYS_execve, SYS_setpgid, SYS_setsid,
#if defined(__x86_64__)
    SYS_fork,   SYS_vfork,   SYS_creat,
#endif
};

constexpr unsigned kDeny = SECCOMP_RET_ERRNO | EPERM;
// Let through by the zygote's filter, narrowed by the candidate's.
constexpr int kNarrowed[] = {SYS_clone, SYS_kill, SYS_tgkill, SYS_prlimit64, SYS_prctl};

// New enough for headers to lack them; the same on every architecture.
constexpr int kLandlockCreate = 444, kLandlockAddRule = 445, kLandlockRestrict = 446;
constexpr int kOpenTree = 428, kMoveMount = 429;

// Linux's own fcntl commands, the same on both architectures.
constexpr unsigned kOfdGetLock = 36, kOfdSetLock = 37, kOfdSetLockWait = 38, kGetPipeSize = 1032,
                   kGetSeals = 1034;
constexpr unsigned kNrOffset = offsetof(seccomp_data, nr), kArchOffset = offsetof(seccomp_data, arch);

constexpr unsigned arg_low(int i) { return offsetof(seccomp_data, args) + 8 * static_cast<unsigned>(i); }

class Filter {
 public:
  explicit Filter(unsigned otherwise) : otherwise_(otherwise) {
    load(kArchOffset);
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArch, 1, 0));
    ret(SECCOMP_RET_KILL_PROCESS);
    load(kNrOffset);
  }

  // Refuse every one of `numbers`.
  void deny(const std::vector<int>& numbers) {
    for (std::size_t left = numbers.size(); left > 0; --left) {
      const auto nr = static_cast<unsigned>(numbers[numbers.size() - left]);
      code_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, static_cast<unsigned char>(left), 0));
    }
    code_.push_back(BPF_STMT(BPF_JMP | BPF_JA, 1));
    ret(kDeny);
  }

  void give(int nr, unsigned action) {
    code_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(nr), 0, 1));
    ret(action);
  }

  // What is asked of one argument: (argument & mask) equals one of `values`. Only the low half is looked at:
  // every argument that is checked here is an int to the kernel.
  struct Where {
    int argument;
    unsigned mask;
    std::vector<unsigned> values;
  };

  // Allow `nr` only where every condition holds.
  void allow_if(int nr, const std::vector<Where>& conditions) {
    // per condition: load, mask, one compare per value, and the refusal that the last compare falls into
    std::size_t block = 1;
    for (const Where& where : conditions) block += 3 + where.values.size();
    code_.push_back(
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(nr), 0, static_cast<unsigned char>(block)));
    for (const Where& where : conditions) {
      load(arg_low(where.argument));
      code_.push_back(BPF_STMT(BPF_ALU | BPF_AND | BPF_K, where.mask));
      for (std::size_t left = where.values.size(); left > 0; --left) {
        const unsigned value = where.values[where.values.size() - left];
        code_.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, static_cast<unsigned char>(left),
                                 0));  // past the refusal
      }
      ret(kDeny);
    }
    ret(SECCOMP_RET_ALLOW);
  }

  std::vector<sock_filter> finish() {
    ret(otherwise_);
    return std::move(code_);
  }

 private:
  void load(unsigned offset) { code_.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset)); }
  void ret(unsigned action) { code_.push_back(BPF_STMT(BPF_RET | BPF_K, action)); }

  unsigned otherwise_;  // what becomes of a call that is not named
  std::vector<sock_filter> code_;
};

void install(std::vector<sock_filter>& code) {
  const sock_fprog program{static_cast<unsigned short>(code.size()), code.data()};
  if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0) throw SandboxError("seccomp");
}

// What the zygote and a child before it is confined need, and a confined one must not have.
constexpr int kZygoteOnly[] = {
    SYS_sendmsg, SYS_recvmsg,    SYS_setns,       SYS_unshare,      SYS_mount,         SYS_capset, SYS_setsid,
    SYS_seccomp, SYS_pidfd_open, kLandlockCreate, kLandlockAddRule, kLandlockRestrict, kOpenTree,  kMoveMount,
};

constexpr unsigned kWhole = 0xffffffffu;
constexpr unsigned kSelf = 0x7fffffffu;  // no process has this number: the place of the one that is confined

}  // namespace

void apply_zygote_seccomp(bool own_files, bool children) {
  Filter filter(kDeny);
  for (int nr : kAllowed) filter.give(nr, SECCOMP_RET_ALLOW);
  for (int nr : kZygoteOnly) filter.give(nr, SECCOMP_RET_ALLOW);
  for (int nr : kNarrowed) filter.give(nr, SECCOMP_RET_ALLOW);
  if (own_files) {
    for (int nr : kOnOwnFiles) filter.give(nr, SECCOMP_RET_ALLOW);
    filter.give(SYS_openat, SECCOMP_RET_ALLOW);
#if defined(__x86_64__)
    filter.give(SYS_open, SECCOMP_RET_ALLOW);
#endif
  } else {
    // Landlock asks for rights by what the descriptor can do: for access mode 3, which can do neither, for
    // none, and before its version 3 not for O_TRUNC. Together these would empty any file of the user.
    const unsigned looked_at = O_ACCMODE | (landlock_version() < 3 ? O_TRUNC : 0);
    filter.allow_if(SYS_openat, {{2, looked_at, {O_RDONLY, O_WRONLY, O_RDWR}}});
#if defined(__x86_64__)
    filter.allow_if(SYS_open, {{1, looked_at, {O_RDONLY, O_WRONLY, O_RDWR}}});
#endif
  }
  if (children) {
    for (int nr : kForChildren) filter.give(nr, SECCOMP_RET_ALLOW);
#if defined(__x86_64__)
    filter.allow_if(SYS_arch_prctl, {{0, kWhole, {0x1002u}}});  // ARCH_SET_FS: every new program's first call
#endif
  }
  filter.give(SYS_clone3, SECCOMP_RET_ERRNO | ENOSYS);  // its flags lie in memory; glibc falls back to clone

  // Not F_SETOWN, F_SETSIG (a chosen signal to any process of the user), F_SETLEASE (holds up whoever opens
  // the file), F_NOTIFY (watches directories), F_SETPIPE_SZ (memory that the user's other pipes then lack).
  filter.allow_if(SYS_fcntl,
                  {{1,
                    kWhole,
                    {F_GETFL, F_SETFL, F_GETFD, F_SETFD, F_DUPFD, F_DUPFD_CLOEXEC, F_GETLK, F_SETLK, F_SETLKW,
                     kOfdGetLock, kOfdSetLock, kOfdSetLockWait, kGetPipeSize, kGetSeals}}});
  // Terminal or not, its size, how much there is to read, non-blocking, close on exec and back.
  filter.allow_if(SYS_ioctl, {{1, kWhole, {0x5401u, 0x5413u, 0x541bu, 0x5421u, 0x5450u, 0x5451u}}});

  // A connected pair of streams: a datagram socket could be sent to any path, other families are other code
  // of the kernel. No urgent data, none of the peer's credentials or pidfd.
  filter.allow_if(SYS_socketpair, {{0, kWhole, {AF_UNIX}}, {1, 0xf, {SOCK_STREAM}}, {2, kWhole, {0}}});
  filter.allow_if(SYS_sendto, {{3, ~unsigned{MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE}, {0}}});
  filter.allow_if(SYS_recvfrom, {{3, ~unsigned{MSG_PEEK | MSG_DONTWAIT | MSG_WAITALL | MSG_TRUNC}, {0}}});
  filter.allow_if(SYS_getsockopt,
                  {{1, kWhole, {SOL_SOCKET}},
                   {2, kWhole, {SO_TYPE, SO_ERROR, SO_DOMAIN, SO_PROTOCOL, SO_SNDBUF, SO_RCVBUF}}});
  std::vector<sock_filter> code = filter.finish();
  install(code);
}

CandidateFilter::CandidateFilter(bool children) {
  Filter filter(
      SECCOMP_RET_ALLOW);  // of what the zygote's filter lets through; the kernel takes the stricter
  std::vector<int> denied;
  for (int nr : kZygoteOnly) {
    if (nr != SYS_setsid || !children) denied.push_back(nr);
  }
  filter.deny(denied);

  // Threads, and no namespaces with them; processes only where it may have them, and its own.
  constexpr unsigned kNamespaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                                   CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
  if (children) {
    filter.allow_if(SYS_clone, {{0, kNamespaces | CLONE_PARENT | CLONE_PTRACE, {0}}});
  } else {
    filter.allow_if(SYS_clone, {{0, CLONE_THREAD | kNamespaces, {CLONE_THREAD}}});
    // Signals: to itself only. With children its pid namespace is what keeps them from others.
    filter.allow_if(SYS_kill, {{0, kWhole, {kSelf}}});
    filter.allow_if(SYS_tgkill, {{0, kWhole, {kSelf}}});
  }
  filter.allow_if(SYS_prlimit64, {{0, kWhole, {0, kSelf}}});
  filter.allow_if(SYS_prctl, {{0, kWhole, {PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_SET_VMA}}});
  code_ = filter.finish();
  for (std::size_t i = 0; i < code_.size(); ++i) {
    if (BPF_CLASS(code_[i].code) == BPF_JMP && code_[i].k == kSelf) self_.push_back(i);
  }
}

CandidateFilter::~CandidateFilter() = default;

void CandidateFilter::apply() {
  for (std::size_t i : self_) code_[i].k = static_cast<unsigned>(getpid());
  install(code_);
}

}  // namespace restrl::sandbox
