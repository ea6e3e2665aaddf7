// What a process does once so that its forks are cheap.
#pragma once

namespace restrl {

// A fork pays for every page that its parent has, and again for every one of these that it writes to or, of
// the libraries, reads. So the interpreter's code becomes a few huge pages, which forks share without a fault,
// and holes between what was allocated are filled, so that what a fork allocates lies together on new pages.
// Where the system does not help nothing changes. For the interpreter's only thread.
void make_forks_cheap();

}  // namespace restrl
