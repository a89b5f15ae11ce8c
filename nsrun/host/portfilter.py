# SPDX-License-Identifier: Apache-2.0
"""Check what a pod may send: a classic BPF program on its veth, run for every frame before the bridge sees it.

Only frames from the pod's own MAC and IPv4 address pass, and only ARP with these as the sender.  So a pod can't take a
neighbour's address by ARP, answer in its name, or advertise a router: IPv6 is dropped altogether, since a pod on the
bridge has no IPv6 address but a link-local one.  Frames with a VLAN tag, DHCP offers, and everything for 127.0.0.0/8
(route_localnet is set on the bridge: CVE-2020-8558) are dropped, too.

It is a tc filter rather than an nf_tables rule because of its lifetime: it ends with the veth and with nothing else.  A
table ends with its owner's socket or with `nft flush ruleset`, and a pod's namespaces may outlive both.

See Linux Documentation/networking/filter.rst and tc-bpf(8).  This module opens no socket.
"""

from __future__ import annotations

#: The first two bytes of a pod's MAC; its address is the rest (net.mac_of).
MAC_PREFIX = 0x024E

PASS, DROP = 0, 2  # TC_ACT_OK, TC_ACT_SHOT (linux/pkt_cls.h)

# Opcodes of linux/bpf_common.h: load a word, half, byte; the frame's length; X = header length; compare; return.
LD, LDH, LDB, LDH_X, LEN, LDX_IHL = 0x20, 0x28, 0x30, 0x48, 0x80, 0xB1
AND, JEQ, JGE, JSET, RET = 0x54, 0x15, 0x35, 0x45, 0x06
VLAN_PRESENT = 0xFFFFF000 + 48  # SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT (linux/filter.h)
NEXT = ""

Line = tuple[int, int, str, str]
Instruction = tuple[int, int, int, int]


def _lines(ip: int) -> list[str | Line]:
    """Return labels and (opcode, operand, target if true, target if false); offsets count from the Ethernet header.

    A load beyond the end of the frame would end the program with 0, PASS; so it checks lengths first.
    """
    return [
        (LEN, 0, NEXT, NEXT),
        (JGE, 34, NEXT, "drop"),  # Ethernet and the shortest IPv4 header
        (LD, VLAN_PRESENT, NEXT, NEXT),
        (JEQ, 0, NEXT, "drop"),
        (LDH, 6, NEXT, NEXT),  # source MAC
        (JEQ, MAC_PREFIX, NEXT, "drop"),
        (LD, 8, NEXT, NEXT),
        (JEQ, ip, NEXT, "drop"),
        (LDH, 12, NEXT, NEXT),
        (JEQ, 0x0800, "ip", NEXT),
        (JEQ, 0x0806, NEXT, "drop"),
        (LEN, 0, NEXT, NEXT),
        (JGE, 42, NEXT, "drop"),
        (LD, 14, NEXT, NEXT),  # ARP: Ethernet and IPv4 …
        (JEQ, 0x00010800, NEXT, "drop"),
        (LDH, 18, NEXT, NEXT),
        (JEQ, 0x0604, NEXT, "drop"),
        (LDH, 22, NEXT, NEXT),  # … the sender's MAC and address
        (JEQ, MAC_PREFIX, NEXT, "drop"),
        (LD, 24, NEXT, NEXT),
        (JEQ, ip, NEXT, "drop"),
        (LD, 28, NEXT, NEXT),
        (JEQ, ip, "pass", "drop"),
        "ip",
        (LD, 26, NEXT, NEXT),  # from
        (JEQ, ip, NEXT, "drop"),
        (LD, 30, NEXT, NEXT),  # to
        (AND, 0xFF000000, NEXT, NEXT),
        (JEQ, 0x7F000000, "drop", NEXT),
        (LDB, 23, NEXT, NEXT),
        (JEQ, 17, NEXT, "pass"),  # UDP …
        (LDH, 20, NEXT, NEXT),
        (JSET, 0x1FFF, "pass", NEXT),  # … its first fragment …
        (LDX_IHL, 14, NEXT, NEXT),
        (LDH_X, 14, NEXT, NEXT),
        (JEQ, 67, "drop", NEXT),  # … from a DHCP server's port
        "pass",
        (RET, PASS, NEXT, NEXT),
        "drop",
        (RET, DROP, NEXT, NEXT),
    ]


def program(ip: int) -> list[Instruction]:
    """Return the program for this address as in struct sock_filter: (opcode, jump if true, jump if false, operand) …."""
    lines = _lines(ip)
    code: list[Line] = []
    labels: dict[str, int] = {}
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(code)
        else:
            code.append(line)

    def jump(at: int, to: str) -> int:
        return labels[to] - at - 1 if to else 0

    return [(op, jump(i, true), jump(i, false), operand) for i, (op, operand, true, false) in enumerate(code)]


def tc_bytecode(address: str) -> str:
    """Return the program as tc-bpf(8) takes it on a command line, with `address` in place of the pod's address."""
    marker = 0x3A3B3C3D
    code = [f"{op} {t} {f} {address if k == marker else k}" for op, t, f, k in program(marker)]
    return f"{len(code)}," + ",".join(code)
