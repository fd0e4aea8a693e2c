"""A link that takes its time: frames go from either interface to the other, so many milliseconds later."""

import heapq
import select
import socket
import sys
import time

ETH_P_ALL = 3
PACKET_OUTGOING = 4


def opened(interface):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((interface, 0))
    sock.setblocking(False)
    return sock


def main():
    one, other = opened(sys.argv[1]), opened(sys.argv[2])
    delay = float(sys.argv[3]) / 1000
    beyond = {one: other, other: one}
    waiting, count = [], 0
    while True:
        until = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
        for sock in select.select([one, other], [], [], until)[0]:
            frame, address = sock.recvfrom(65536)
            if address[2] != PACKET_OUTGOING:
                count += 1
                heapq.heappush(waiting, (time.monotonic() + delay, count, beyond[sock], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, sock, frame = heapq.heappop(waiting)
            sock.send(frame)


main()
