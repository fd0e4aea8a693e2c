"""A server of HTTP/1.1 that keeps what it was sent: shadow_server.py MODE ADDRESS PORT DIRECTORY.

MODE: `answer` answers each request with 200 and `hello from behind the VIP`, or with 500 where its
path begins with /bad; `hang` takes connections and never reads. What came on a connection stands in
DIRECTORY, a file each, once it has ended.
"""

import itertools
import pathlib
import socket
import sys
import threading

MODE, ADDRESS, PORT, DIRECTORY = sys.argv[1:5]
NUMBERS = itertools.count()
BODY = b"hello from behind the VIP\n"


def length_of(head):
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def serve(connection):
    number, came, rest = next(NUMBERS), b"", b""
    try:
        while part := connection.recv(65536):
            came += part
            rest += part
            while b"\r\n\r\n" in rest:
                head, _, after = rest.partition(b"\r\n\r\n")
                if len(after) < length_of(head):
                    break
                rest = after[length_of(head):]
                status = b"500 No" if head.split(b" ")[1].startswith(b"/bad") else b"200 OK"
                answer = b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status, len(BODY))
                connection.sendall(answer + BODY)
    except OSError:
        pass
    connection.close()
    # Whole from the moment that it is there.
    part = pathlib.Path(f"{DIRECTORY}-{number}.part")
    part.write_bytes(came)
    part.rename(pathlib.Path(DIRECTORY, f"connection-{number}"))


listener = socket.create_server((ADDRESS, int(PORT)), backlog=1024)
kept = []
while True:
    connection, _ = listener.accept()
    if MODE == "hang":
        kept.append(connection)
    else:
        threading.Thread(target=serve, args=(connection,), daemon=True).start()
