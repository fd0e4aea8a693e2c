"""Peers of the tests of delayed binding: an OpenAI client, a gRPC client and a gRPC server.

    peers.py openai VIP NAME
    peers.py serve ADDRESS:PORT [CERT KEY]
    peers.py grpc VIP NAME CERT
    peers.py where VIP:PORT METHOD
"""

import socket
import sys
from concurrent import futures

CALLS = 100
MESSAGES = 1000
SERVICE = "inference.Echo"


def openai_client(vip, name):
    import openai

    resolve = socket.getaddrinfo
    # There is no name server in the test's network.
    socket.getaddrinfo = lambda host, *a, **k: resolve(vip if host == name else host, *a, **k)
    client = openai.OpenAI(
        api_key="none",
        base_url=f"https://{name}/python/v1",
        max_retries=0,
        timeout=20,
        http_client=openai.DefaultHttpxClient(verify=False),
    )
    stream = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "count " * 3000}], stream=True
    )
    print("".join(chunk.choices[0].delta.content or "" for chunk in stream))


def echo(request, _context):
    return request[::-1]


def repeat(request, _context):
    for i in range(MESSAGES):
        yield request + str(i).encode()


def grpc_server(address, cert=None, key=None):
    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(4))
    handlers = {
        "Call": grpc.unary_unary_rpc_method_handler(echo),
        "Stream": grpc.unary_stream_rpc_method_handler(repeat),
        "Where": grpc.unary_unary_rpc_method_handler(lambda _request, _context: address.encode()),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if cert:
        with open(key, "rb") as k, open(cert, "rb") as c:
            credentials = grpc.ssl_server_credentials([(k.read(), c.read())])
        server.add_secure_port(address, credentials)
    else:
        server.add_insecure_port(address)
    server.start()
    server.wait_for_termination()


def grpc_client(vip, name, cert):
    import grpc

    with open(cert, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    options = [("grpc.ssl_target_name_override", name)]
    with grpc.secure_channel(f"ipv4:{vip}:443", credentials, options) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Call")
        for i in range(CALLS):
            sent = bytes([i]) * (1 + 500 * i)
            assert call(sent + b"end", timeout=20) == b"dne" + sent
        stream = channel.unary_stream(f"/{SERVICE}/Stream")
        got = list(stream(b"m", timeout=20))
        assert got == [b"m" + str(i).encode() for i in range(MESSAGES)]
    print(f"{CALLS} calls, {len(got)} messages")


def grpc_where(target, method):
    """Without TLS: a first call of the method, then asks who answers."""
    import grpc

    with grpc.insecure_channel(f"ipv4:{target}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/{method}")
        for _ in range(CALLS):
            call(b"x" * 30_000, timeout=20)
        print(channel.unary_unary(f"/{SERVICE}/Where")(b"", timeout=20).decode())


if __name__ == "__main__":
    what = {
        "openai": openai_client,
        "serve": grpc_server,
        "grpc": grpc_client,
        "where": grpc_where,
    }
    what[sys.argv[1]](*sys.argv[2:])
