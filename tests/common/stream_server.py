"""Streams answers, as servers of language models do, over TLS and in clear text.

stream_server.py ADDRESS TLS-PORT CLEAR-PORT CERTIFICATE KEY

Each request is answered after FIRST seconds, and then with CHUNKS events, GAP seconds apart.
"""

import socket
import ssl
import sys
import threading
import time

FIRST, GAP, CHUNKS = 0.3, 0.06, 10


def serve(connection):
    with connection:
        received = b""
        while True:
            piece = connection.recv(65536)
            if not piece:
                return
            received += piece
            head, found, body = received.partition(b"\r\n\r\n")
            if not found:
                continue
            length = 0
            for line in head.split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            if len(body) < length:
                continue
            received = body[length:]
            time.sleep(FIRST)
            answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            connection.sendall(answer + b"Transfer-Encoding: chunked\r\n\r\n")
            for number in range(CHUNKS):
                time.sleep(GAP)
                event = b'data: {"choices":[{"delta":{"content":"word %d"}}]}\n\n' % number
                connection.sendall(b"%x\r\n%s\r\n" % (len(event), event))
            connection.sendall(b"0\r\n\r\n")


def accept(listener, context):
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def run(connection=connection):
            try:
                serve(context.wrap_socket(connection, server_side=True) if context else connection)
            except OSError:
                pass

        threading.Thread(target=run, daemon=True).start()


address, tls_port, clear_port, certificate, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
family = socket.AF_INET6 if ":" in address else socket.AF_INET
tls = socket.create_server((address, int(tls_port)), family=family)
clear = socket.create_server((address, int(clear_port)), family=family)
threading.Thread(target=accept, args=(clear, None), daemon=True).start()
accept(tls, context)
