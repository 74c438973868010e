"""ssh's ProxyCommand for a line that breaks: passes bytes to a port of the loopback, and dies after so many were sent."""

import os
import socket
import sys
import threading


def main(port: int, limit: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as server:

        def answers() -> None:
            while data := server.recv(65536):
                os.write(1, data)
            os._exit(0)

        threading.Thread(target=answers, daemon=True).start()
        sent = 0
        while data := os.read(0, 16384):
            sent += len(data)
            if sent > limit:
                server.shutdown(socket.SHUT_RDWR)  # so that what was sent arrives, and tests see the same each time
                os._exit(1)
            server.sendall(data)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
