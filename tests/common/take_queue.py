"""Binds an AF_XDP socket to queue 0 of the interface that is named, says so, and waits."""

import ctypes
import mmap
import signal
import socket
import struct
import sys

AF_XDP = 44
SOL_XDP = 283
RX_RING, UMEM_REG, FILL_RING, COMPLETION_RING = 2, 4, 5, 6  # XDP_* of linux/if_xdp.h
FRAMES, FRAME_SIZE = 64, 4096

memory = mmap.mmap(-1, FRAMES * FRAME_SIZE)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
taker = socket.socket(AF_XDP, socket.SOCK_RAW, 0)
# struct xdp_umem_reg: address, length, size of a frame, headroom, flags.
region = struct.pack("=QQIIII", address, FRAMES * FRAME_SIZE, FRAME_SIZE, 0, 0, 0)
taker.setsockopt(SOL_XDP, UMEM_REG, region)
for ring in (FILL_RING, COMPLETION_RING, RX_RING):
    taker.setsockopt(SOL_XDP, ring, struct.pack("=i", FRAMES))
# struct sockaddr_xdp: family, flags, interface, queue, descriptor of a shared region.
where = struct.pack("=HHIII", AF_XDP, 0, socket.if_nametoindex(sys.argv[1]), 0, 0)
libc = ctypes.CDLL(None, use_errno=True)
if libc.bind(taker.fileno(), where, len(where)) != 0:
    sys.exit(f"bind: errno {ctypes.get_errno()}")
open(sys.argv[2], "w").close()
signal.pause()
