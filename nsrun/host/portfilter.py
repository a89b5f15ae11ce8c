# SPDX-License-Identifier: Apache-2.0
"""Check what a pod may send: a classic BPF program on its veth, run for every frame before the bridge sees it.

Only frames from the pod's own MAC and address pass, and only ARP with these as the sender.  So a pod can't take a
neighbour's address by ARP, or answer in its name.  Frames with a VLAN tag, DHCP offers, and everything for 127.0.0.0/8
(route_localnet is set on the bridge: CVE-2020-8558) are dropped, too.

Of IPv6 only what has the pod's own address as its source passes: to one host, no group and no link-local address; TCP,
UDP, SCTP, ICMP's echoes and errors, and fragments of these.  Who has which address is configured on both ends, so all of
neighbour discovery is dropped, and router advertisements, redirects and MLD with it; a link-local address is of no use.
No other extension header passes, since one could hide these.  Where a pod has no IPv6 address, all of IPv6 is dropped.

A pod that is isolated sends to the bridge's own MAC alone, and to no address of the bridge's networks but the bridge's; a
second program, on what goes to the pod, drops what comes from such an address.  So neither frames that somebody makes by hand
nor routes by way of the host lead from one pod to the other, whichever of them is isolated.

A pod that is closed in, since there is no nf_tables to guard the ways by this host, sends to addresses of the bridge's network
alone; to it comes what other pods send on the bridge, with their own MAC and address, and what this host sends from the bridge's.
Whatever this host would forward has the bridge's MAC and another address, so it is dropped, whoever it pretends to be.

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
TAX, JEQ_X = 0x07, 0x1D  # X = A; compare A with X
VLAN_PRESENT = 0xFFFFF000 + 48  # SKF_AD_OFF + SKF_AD_VLAN_TAG_PRESENT (linux/filter.h)
NEXT = ""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

Line = tuple[int, int, str, str]
Instruction = tuple[int, int, int, int]


def _lines(ip: int, prefix6: Sequence[int], bridge: Sequence[int], net: Sequence[int]) -> list[str | Line]:
    """Return labels and (opcode, operand, target if true, target if false); offsets count from the Ethernet header.

    A load beyond the end of the frame would end the program with 0, PASS; so it checks lengths first.
    """
    to_bridge: list[str | Line] = []
    in_network: list[str | Line] = []
    if bridge:
        to_bridge = [
            (LD, 0, NEXT, NEXT),
            (JEQ, bridge[0], NEXT, "drop"),
            (LDH, 4, NEXT, NEXT),
            (JEQ, bridge[1], NEXT, "drop"),
        ]
        in_network = [
            (LD, 30, NEXT, NEXT),
            (JEQ, bridge[2], "allowed", NEXT),
            (AND, bridge[4], NEXT, NEXT),
            (JEQ, bridge[3], "drop", NEXT),
            "allowed",
        ]
    if net:
        in_network = [(LD, 30, NEXT, NEXT), (AND, net[1], NEXT, NEXT), (JEQ, net[0], NEXT, "drop"), *in_network]
    return [
        (LEN, 0, NEXT, NEXT),
        (JGE, 34, NEXT, "drop"),  # Ethernet and the shortest IPv4 header
        (LD, VLAN_PRESENT, NEXT, NEXT),
        (JEQ, 0, NEXT, "drop"),
        (LDH, 6, NEXT, NEXT),  # source MAC
        (JEQ, MAC_PREFIX, NEXT, "drop"),
        (LD, 8, NEXT, NEXT),
        (JEQ, ip, NEXT, "drop"),
        *to_bridge,
        (LDH, 12, NEXT, NEXT),
        (JEQ, 0x0800, "ip", NEXT),
        *([(JEQ, 0x86DD, "ip6", NEXT)] if prefix6 else []),
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
        *in_network,
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
        *(_ip6(ip, prefix6, bridge) if prefix6 else []),
    ]


def _ip6(ip: int, prefix6: Sequence[int], bridge: Sequence[int]) -> list[str | Line]:
    """Return what checks an IPv6 packet, with an end of its own: a jump reaches no further than 255 instructions, and forward."""
    own: list[str | Line] = []
    for offset, word in zip((22, 26, 30, 34), (*prefix6, 0, ip), strict=True):  # from
        own += [(LD, offset, NEXT, NEXT), (JEQ, word, NEXT, "drop6")]
    if bridge:
        for offset, word, otherwise in zip((38, 42, 46, 50), (*prefix6, *bridge[5:7]), ("allowed6", "allowed6", "drop6", "drop6"), strict=True):  # fmt: skip
            own += [(LD, offset, NEXT, NEXT), (JEQ, word, NEXT, otherwise)]
        own.append("allowed6")
    return [
        "ip6",
        (LEN, 0, NEXT, NEXT),
        (JGE, 62, NEXT, "drop6"),  # Ethernet, the header, and the shortest one of those below
        *own,
        (LD, 38, NEXT, NEXT),  # to
        (JEQ, 0, "drop6", NEXT),  # ::, ::1, and IPv4 in disguise
        (AND, 0xFFC00000, NEXT, NEXT),
        (JEQ, 0xFE800000, "drop6", NEXT),
        (JGE, 0xFF000000, "drop6", NEXT),
        (LDB, 20, NEXT, NEXT),
        (JEQ, 6, "pass6", NEXT),
        (JEQ, 132, "pass6", NEXT),
        (JEQ, 17, "udp6", NEXT),
        (JEQ, 58, "icmp6", NEXT),
        (JEQ, 44, NEXT, "drop6"),
        (LEN, 0, NEXT, NEXT),
        (JGE, 63, NEXT, "drop6"),  # a fragment has at least one byte
        (LDB, 54, NEXT, NEXT),
        (JEQ, 6, "pass6", NEXT),
        (JEQ, 132, "pass6", NEXT),
        (JEQ, 17, "pass6", NEXT),
        (JEQ, 58, NEXT, "drop6"),
        (LDH, 56, NEXT, NEXT),
        (JSET, 0xFFF8, "pass6", NEXT),  # not the first one
        (LDB, 62, NEXT, NEXT),
        (JEQ, 128, "pass6", NEXT),
        (JEQ, 129, "pass6", "drop6"),
        "udp6",
        (LDH, 54, NEXT, NEXT),
        (JEQ, 547, "drop6", "pass6"),  # from a DHCP server's port
        "icmp6",
        (LDB, 54, NEXT, NEXT),
        (JEQ, 0, "drop6", NEXT),
        (JGE, 130, "drop6", NEXT),
        (JGE, 128, "pass6", NEXT),  # an echo, or its answer
        (JGE, 5, "drop6", "pass6"),  # an error
        "pass6",
        (RET, PASS, NEXT, NEXT),
        "drop6",
        (RET, DROP, NEXT, NEXT),
    ]


def program(
    ip: int, prefix6: Sequence[int] = (), bridge: Sequence[int] = (), net: Sequence[int] = ()
) -> list[Instruction]:
    """Return the program for this address as in struct sock_filter: (opcode, jump if true, jump if false, operand) ….

    `prefix6`: the two words before the pod's IPv6 address, which ends with the IPv4 one; none: the pod has none.  `bridge`, for
    a pod that is isolated: the bridge's MAC in two words, its address, its network and the mask of that, and the second half of
    its IPv6 address.  `net`, for one that is closed in: the bridge's network and the mask of that.
    """
    return _assembled(_lines(ip, prefix6, bridge, net))


def arrivals(prefix6: Sequence[int], bridge: Sequence[int]) -> list[Instruction]:
    """Return the program for what comes to an isolated pod: nothing that has another pod's address as its source.

    The MAC is not compared: where br_netfilter is loaded, what comes by a published port keeps the sender's.
    """
    lines: list[str | Line] = [
        (LEN, 0, NEXT, NEXT),
        (JGE, 34, NEXT, "drop"),
        (LDH, 12, NEXT, NEXT),
        (JEQ, 0x0800, "ip", NEXT),
        (JEQ, 0x0806, "arp", NEXT),
        (JEQ, 0x86DD, NEXT, "drop"),
    ]
    if prefix6:
        lines += [(LEN, 0, NEXT, NEXT), (JGE, 54, NEXT, "drop")]
        for offset, word, otherwise in zip((22, 26, 30, 34), (*prefix6, *bridge[5:7]), ("pass", "pass", "drop", "drop"), strict=True):  # fmt: skip
            lines += [(LD, offset, NEXT, NEXT), (JEQ, word, NEXT, otherwise)]
        lines.append((JEQ, bridge[6], "pass", "drop"))
    else:
        lines.append((JEQ, 0, "pass", "drop"))
    return _assembled(
        [
            *lines,
            "arp",
            (LD, 28, NEXT, NEXT),  # the sender's address
            (JEQ, bridge[2], "pass", "drop"),
            "ip",
            (LD, 26, NEXT, NEXT),
            (JEQ, bridge[2], "pass", NEXT),
            (AND, bridge[4], NEXT, NEXT),
            (JEQ, bridge[3], "drop", NEXT),
            "pass",
            (RET, PASS, NEXT, NEXT),
            "drop",
            (RET, DROP, NEXT, NEXT),
        ]
    )


def closed_arrivals(bridge: Sequence[int], alone: bool) -> list[Instruction]:
    """Return the program for what comes to a pod that is closed in: from the bridge itself, and from other pods unless it is `alone`.

    `bridge`: its MAC in two words, its address, its network, and the mask of that.  What this host forwards is not from the
    bridge: it has its MAC, and another address.
    """
    others = "drop" if alone else NEXT
    return _assembled(
        [
            (LEN, 0, NEXT, NEXT),
            (JGE, 34, NEXT, "drop"),
            (LDH, 12, NEXT, NEXT),
            (JEQ, 0x0800, "ip", NEXT),
            (JEQ, 0x0806, NEXT, "drop"),
            (LD, 28, NEXT, NEXT),  # ARP: the sender's address
            (JEQ, bridge[2], "pass", others),
            (AND, bridge[4], NEXT, NEXT),
            (JEQ, bridge[3], "pass", "drop"),
            "ip",
            (LD, 26, NEXT, NEXT),
            (JEQ, bridge[2], "bridge", others),
            (TAX, 0, NEXT, NEXT),
            (LD, 8, NEXT, NEXT),
            (JEQ_X, 0, NEXT, "drop"),  # a pod's MAC ends with its address
            (LDH, 6, NEXT, NEXT),
            (JEQ, MAC_PREFIX, NEXT, "drop"),
            (LD, 26, NEXT, NEXT),
            (AND, bridge[4], NEXT, NEXT),
            (JEQ, bridge[3], "pass", "drop"),
            "bridge",
            (LD, 6, NEXT, NEXT),
            (JEQ, bridge[0], NEXT, "drop"),
            (LDH, 10, NEXT, NEXT),
            (JEQ, bridge[1], NEXT, "drop"),
            "pass",
            (RET, PASS, NEXT, NEXT),
            "drop",
            (RET, DROP, NEXT, NEXT),
        ]
    )


def _assembled(lines: Sequence[str | Line]) -> list[Instruction]:
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


#: What stands for the words of a pod in a program that a shell is to fill in.
MARKERS = (
    0x3A3B3C3D, 0x7A7B7C7D, 0x8A8B8C8D, 0x4A4B4C4E, 0x5A5B5C5E, 0x6A6B6C6E, 0x7A7B7C7E, 0xAAABACAE, 0x8A8B8C8E, 0x9A9B9C9E,
)  # fmt: skip


def tc_bytecode(code: Sequence[Instruction], words: Sequence[str]) -> str:
    """Return a program of MARKERS as tc-bpf(8) takes it on a command line, with these words in their place."""
    markers = dict(zip(MARKERS, words, strict=False))
    lines = [f"{op} {t} {f} {markers.get(k, k)}" for op, t, f, k in code]
    return f"{len(lines)}," + ",".join(lines)
