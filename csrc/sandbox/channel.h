// Length-prefixed messages over a stream socket, with a deadline and a process to watch.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <string>

namespace restrl::sandbox {

#if defined(MSG_NOSIGNAL)
inline constexpr int kNoSignal = MSG_NOSIGNAL;
#else
inline constexpr int kNoSignal = 0;  // the interpreter ignores SIGPIPE
#endif

enum class Received { message, closed, timeout, cut, too_long, orphaned };

// Reads one message into `out`. `timeout_ms` < 0 waits for ever. `keeper` (or -1) is a descriptor whose
// hang-up means that whoever wants the answer is gone: `orphaned`. A length above `max_bytes` is `too_long`,
// nothing is read.
// `timeout` leaves the stream as it was; where part of a message has been read by then, it is `cut`.
Received receive_message(int fd, std::string& out, std::int64_t timeout_ms, std::uint64_t max_bytes,
                         int keeper);

// Writes one message; false where the other side is gone or does not read within `timeout_ms`.
bool send_message(int fd, const char* data, std::size_t size, std::int64_t timeout_ms);

}  // namespace restrl::sandbox
