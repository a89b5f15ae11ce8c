#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A name server and its client, to see where UDP goes: every name has the address that the server was told.

dns.py serve PORT ANSWER [ADDRESS]    answer each question, until killed
dns.py ask ADDRESS PORT               for each line of the input, ask once from the same socket; print the answer, or "silent"
"""

import socket
import struct
import sys

QUESTION = b"\3pod\7example\0" + struct.pack(">HH", 1, 1)


def family(address: str) -> socket.AddressFamily:
    """Return the family of an address; the one of "::" takes what comes over IPv4 as well."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def serve(port: int, answer: str, address: str = "0.0.0.0") -> None:
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.bind((address, port))
        while True:
            query, client = sock.recvfrom(512)
            record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(answer)
            sock.sendto(query[:2] + b"\x81\x80" + struct.pack(">HHHH", 1, 1, 0, 0) + query[12:] + record, client)


def ask(address: str, port: int) -> None:
    with socket.socket(family(address), socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        for number, _ in enumerate(sys.stdin, 1):
            print(_once(sock, number), flush=True)


def _once(sock: socket.socket, number: int) -> str:
    query = struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0) + QUESTION
    sock.settimeout(0.5)
    try:
        sock.send(query)
        while True:
            found = sock.recv(512)
            if found[:2] == query[:2]:
                return socket.inet_ntoa(found[-4:])
    except OSError:  # a timeout, or what ICMP said
        return "silent"


if __name__ == "__main__":
    what, first, second, *more = sys.argv[1:]
    if what == "serve":
        serve(int(first), second, *more)
    ask(first, int(second))
