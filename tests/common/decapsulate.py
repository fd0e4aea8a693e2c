"""The backend's end of tunnels: takes IP in IP and GUE apart, and gives what is within to the
kernel by a tun device. Stands for the kernel's own ipip, sit, ip6tnl and fou modules.

Usage: decapsulate.py DEVICE GUE_PORT COUNTS_FILE
"""
import fcntl
import select
import socket
import struct
import subprocess
import sys

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
IPIP, IPV6 = 4, 41


def main():
    device, port, counts_file = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    tun = open("/dev/net/tun", "r+b", buffering=0)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    subprocess.check_call(["ip", "link", "set", device, "up", "mtu", "9000"])
    raw4 = [socket.socket(socket.AF_INET, socket.SOCK_RAW, p) for p in (IPIP, IPV6)]
    raw6 = [socket.socket(socket.AF_INET6, socket.SOCK_RAW, p) for p in (IPIP, IPV6)]
    udp4 = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp6.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    udp4.bind(("0.0.0.0", port))
    udp6.bind(("::", port))
    counts = {}
    print("ready", flush=True)
    open(counts_file, "w").close()
    while True:
        for s in select.select(raw4 + raw6 + [udp4, udp6], [], [])[0]:
            packet, sender = s.recvfrom(65535)
            if s in raw4:
                packet = packet[(packet[0] & 15) * 4:]
            elif s in (udp4, udp6):
                if packet[0] or packet[1] not in (IPIP, IPV6) or packet[2] or packet[3]:
                    continue
                packet = packet[4:]
            kind = "gue" if s in (udp4, udp6) else "ipip"
            outer = "6" if s.family == socket.AF_INET6 else "4"
            key = f"{kind} {packet[0] >> 4} in {outer} from {sender[0]}"
            if key not in counts:
                counts[key] = True
                with open(counts_file, "a") as f:
                    f.write(key + "\n")
            tun.write(packet)


main()
