"""Linux system calls for descriptors, sockets, paths and users."""
