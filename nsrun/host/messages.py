# SPDX-License-Identifier: Apache-2.0
"""The netlink messages that nsrun sends, encoded by pyroute2.  The only module that imports it.

Pure: values in, bytes out, no socket.  Importing pyroute2 costs ten times as much as creating a pod
(asyncio, ssl and multiprocessing come with it), and every message is the same but for a few numbers.  So
the build step calls these functions once with recognisable values (`SAMPLES`), keeps the bytes in
`_templates.py`, and `wire.py` puts the real values in.  Tests hold both together, for random values.

rtnetlink(7), netlink(7); nf_tables has no manual of its wire format: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import socket
import struct

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, nla, nlmsg
from pyroute2.netlink.nfnetlink.nfctsocket import FILTER_FLAG_CTA_IP_SRC, nfct_msg
from pyroute2.netlink.nfnetlink.nftsocket import (
    nft_chain_msg,
    nft_rule_msg,
    nft_set_elem_list_msg,
    nft_set_msg,
    nft_table_msg,
)
from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWQDISC,
    RTM_NEWROUTE,
    RTM_NEWTFILTER,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from nsrun.host import portfilter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    Expr = dict[str, Any]

IFF_UP = 1
NFT = 10 << 8  # NFNL_SUBSYS_NFTABLES
NEWTABLE, DELTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM = NFT | 0, NFT | 2, NFT | 3, NFT | 6, NFT | 9, NFT | 12
NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_INET_LOCAL_OUT, NF_INET_POST_ROUTING = 0, 2, 3, 4
HOOKS = {
    "prerouting": (NF_INET_PRE_ROUTING, -100, "nat"),
    "output": (NF_INET_LOCAL_OUT, -100, "nat"),
    "postrouting": (NF_INET_POST_ROUTING, 100, "nat"),
    "guard": (NF_INET_PRE_ROUTING, -300, "filter"),
    "forward": (NF_INET_FORWARD, 0, "filter"),
}


def _finish(msg: Any, type_: int, flags: int) -> bytes:
    msg["header"]["type"] = type_
    msg["header"]["flags"] = NLM_F_REQUEST | flags
    msg.encode()
    return bytes(msg.data)


# ---- rtnetlink ---------------------------------------------------------------------------------------


def _mac(raw: bytes) -> str:
    return ":".join(f"{b:02x}" for b in raw)


def new_bridge(name: str, mac: bytes) -> bytes:
    """Make a bridge with a MAC of its own, not the lowest of its ports', so that it stays when a pod comes or goes.

    It does not snoop on IGMP, since a pod could make itself the querier.
    """
    msg = ifinfmsg()
    msg["flags"], msg["change"] = IFF_UP, IFF_UP
    msg["attrs"] = [
        ("IFLA_IFNAME", name),
        ("IFLA_ADDRESS", _mac(mac)),
        (
            "IFLA_LINKINFO",
            {
                "attrs": [
                    ("IFLA_INFO_KIND", "bridge"),
                    ("IFLA_INFO_DATA", {"attrs": [("IFLA_BR_MCAST_SNOOPING", 0)]}),
                ]
            },
        ),
    ]
    return _finish(msg, RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


def new_veth(name: str, bridge: int, netns_fd: int, mac: bytes, mtu: int) -> bytes:
    """Make a veth pair whose far end, eth0, is made inside the pod.  Both ends have this MTU, and the bridge its ports' least.

    So nothing is moved or left behind (moby#31414).
    """
    peer = ifinfmsg()
    peer["attrs"] = [
        ("IFLA_IFNAME", "eth0"),
        ("IFLA_ADDRESS", _mac(mac)),
        ("IFLA_MTU", mtu),
        ("IFLA_NET_NS_FD", netns_fd),
    ]
    msg = ifinfmsg()
    msg["attrs"] = [
        ("IFLA_IFNAME", name),
        ("IFLA_MTU", mtu),
        ("IFLA_MASTER", bridge),
        (
            "IFLA_LINKINFO",
            {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]},
        ),
    ]
    return _finish(msg, RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


def port_up(index: int, alias: str) -> bytes:
    """Bring a port of the bridge up, with an alias that says whose it is, and set what it may do.

    It learns no address and gets no frame for an unknown address: where each pod is has been configured (fdb_entry).
    Hairpin lets the bridge send a frame back where it came from: where br_netfilter is loaded, a pod that calls its own
    published port is DNATed while still on the bridge, and the bridge would drop the frame.
    """
    msg = ifinfmsg()
    msg["index"], msg["flags"], msg["change"] = index, IFF_UP, IFF_UP
    port = {
        "attrs": [
            ("IFLA_BRPORT_MODE", 1),
            ("IFLA_BRPORT_LEARNING", 0),
            ("IFLA_BRPORT_UNICAST_FLOOD", 0),
        ]
    }
    msg["attrs"] = [
        ("IFLA_IFALIAS", alias),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_SLAVE_KIND", "bridge"), ("IFLA_INFO_SLAVE_DATA", port)]}),
    ]
    return _finish(msg, RTM_NEWLINK, NLM_F_ACK)


def alias_bridge(name: str, alias: str) -> bytes:
    """Give the bridge the alias that says whose it is.

    It is found by name, since this goes in one datagram with new_bridge, when nobody knows the index yet.
    (rtnetlink sets no alias while it makes a link.)
    """
    msg = ifinfmsg()
    msg["attrs"] = [("IFLA_IFNAME", name), ("IFLA_IFALIAS", alias)]
    return _finish(msg, RTM_NEWLINK, NLM_F_ACK)


def get_link(index: int) -> bytes:
    msg = ifinfmsg()
    msg["index"] = index
    return _finish(msg, RTM_GETLINK, NLM_F_ACK)


def get_ports(bridge_index: int) -> bytes:
    """Ask for all links that are ports of a bridge; the kernel selects them."""
    msg = ifinfmsg()
    msg["attrs"] = [("IFLA_MASTER", bridge_index)]
    return _finish(msg, RTM_GETLINK, 0x300)  # NLM_F_DUMP


def _neighbour(family: int, index: int, state: int, flags: int, *attrs: object) -> bytes:
    msg = ndmsg()
    msg["family"], msg["ifindex"], msg["state"], msg["flags"] = family, index, state, flags
    msg["attrs"] = list(attrs)
    return _finish(msg, RTM_NEWNEIGH, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE)


def fdb_entry(index: int, mac: bytes) -> bytes:
    """Tell the bridge that this MAC is behind this port and no other, whatever is sent (NTF_STICKY); bridge(8)."""
    return _neighbour(socket.AF_BRIDGE, index, 0x42, 0x44, ("NDA_LLADDR", _mac(mac)))  # NOARP|REACHABLE, MASTER|STICKY


def neighbour(index: int, ip: str, mac: bytes, family: int = socket.AF_INET) -> bytes:
    """Tell the host who has a pod's address, or a pod who has the bridge's: ip-neighbour(8), "permanent".

    So nobody asks by ARP or by neighbour discovery, and nobody else can answer.
    """
    return _neighbour(family, index, 0x80, 0, ("NDA_DST", ip), ("NDA_LLADDR", _mac(mac)))


class _bpf_options(nla):  # type: ignore[misc]  # the one of pyroute2 has no room for a classic program
    nla_map = (
        ("TCA_BPF_UNSPEC", "none"),
        ("TCA_BPF_ACT", "none"),
        ("TCA_BPF_POLICE", "none"),
        ("TCA_BPF_CLASSID", "uint32"),
        ("TCA_BPF_OPS_LEN", "uint16"),
        ("TCA_BPF_OPS", "cdata"),
        ("TCA_BPF_FD", "uint32"),
        ("TCA_BPF_NAME", "asciiz"),
        ("TCA_BPF_FLAGS", "uint32"),
    )


class _bpf_filter(nlmsg):  # type: ignore[misc]  # a subclass of tcmsg would inherit its compiled map of attributes
    fields = tcmsg.fields
    nla_map = (("TCA_UNSPEC", "none"), ("TCA_KIND", "asciiz"), ("TCA_OPTIONS", "options"))
    options = _bpf_options


INGRESS = 0xFFFF0000  # ffff:, linux/pkt_sched.h


def ingress(index: int) -> bytes:
    """Make the place for filters on what an interface receives; tc(8) "ingress"."""
    msg = tcmsg()
    msg["index"], msg["handle"], msg["parent"] = index, INGRESS, 0xFFFFFFF1
    msg["attrs"] = [("TCA_KIND", "ingress")]
    return _finish(msg, RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


def port_filter(index: int, ip_word: int, *prefix6: int) -> bytes:
    """Add the filter for what a pod may send (portfilter.py)."""
    return _filter(index, INGRESS, portfilter.program(ip_word, prefix6))


CLSACT_INGRESS, CLSACT_EGRESS = 0xFFFFFFF2, 0xFFFFFFF3


def both_ways(index: int) -> bytes:
    """Make the place for filters on what an interface receives and sends; tc(8) "clsact"."""
    msg = tcmsg()
    msg["index"], msg["handle"], msg["parent"] = index, INGRESS, 0xFFFFFFF1
    msg["attrs"] = [("TCA_KIND", "clsact")]
    return _finish(msg, RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


def isolating_filter(index: int, ip_word: int, *words: int) -> bytes:
    """Add the filter for what an isolated pod may send; `words`: the bridge's, and before them those of IPv6."""
    return _filter(index, CLSACT_INGRESS, portfilter.program(ip_word, *_apart(words)))


def arrival_filter(index: int, *words: int) -> bytes:
    """Add the filter for what comes to an isolated pod."""
    return _filter(index, CLSACT_EGRESS, portfilter.arrivals(*_apart(words)))


def closed_filter(index: int, ip_word: int, *net: int) -> bytes:
    """Add the filter for what a pod that is closed in may send."""
    return _filter(index, CLSACT_INGRESS, portfilter.program(ip_word, net=net))


def closed_isolating_filter(index: int, ip_word: int, *words: int) -> bytes:
    """Add the filter for what an isolated pod that is closed in may send."""
    return _filter(index, CLSACT_INGRESS, portfilter.program(ip_word, (), words, words[3:]))


def closed_arrival_filter(index: int, *words: Any) -> bytes:
    """Add the filter for what comes to a pod that is closed in; `words`: the bridge's, and whether the pod is isolated."""
    return _filter(index, CLSACT_EGRESS, portfilter.closed_arrivals(words[:5], words[5]))


def _apart(words: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the words of IPv6's prefix, and those of the bridge, which are five without IPv6."""
    return (words[:2], words[2:]) if len(words) == 9 else ((), words)


def _filter(index: int, parent: int, code: Sequence[portfilter.Instruction]) -> bytes:
    """Add a program to an interface; its result is the verdict: tc-bpf(8)."""
    msg = _bpf_filter()
    msg["index"], msg["parent"], msg["info"] = index, parent, 1 << 16 | socket.htons(3)  # priority 1, ETH_P_ALL
    options = [
        ("TCA_BPF_OPS_LEN", len(code)),
        ("TCA_BPF_OPS", b"".join(struct.pack("=HBBI", *line) for line in code)),
        ("TCA_BPF_FLAGS", 1),  # TCA_BPF_FLAG_ACT_DIRECT
    ]
    msg["attrs"] = [("TCA_KIND", "bpf"), ("TCA_OPTIONS", {"attrs": options})]
    return _finish(msg, RTM_NEWTFILTER, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


def link_up(index: int) -> bytes:
    msg = ifinfmsg()
    msg["index"], msg["flags"], msg["change"] = index, IFF_UP, IFF_UP
    return _finish(msg, RTM_NEWLINK, NLM_F_ACK)


def del_link(index: int) -> bytes:
    msg = ifinfmsg()
    msg["index"] = index
    return _finish(msg, RTM_DELLINK, NLM_F_ACK)


def new_address(index: int, ip: str, prefix: bytes) -> bytes:
    """Add an IPv4 address; `prefix`: AF_INET and the length of the prefix, with which struct ifaddrmsg begins."""
    msg = ifaddrmsg()
    msg["family"], msg["prefixlen"] = prefix
    msg["index"] = index
    msg["attrs"] = [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip)]
    return _finish(msg, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


def get_addresses() -> bytes:
    """Ask for all IPv4 addresses of this network namespace; rtnetlink(7)."""
    msg = ifaddrmsg()
    msg["family"] = socket.AF_INET
    return _finish(msg, RTM_GETADDR, 0x300)  # NLM_F_DUMP


def get_route(ip: str) -> bytes:
    """Ask for the route that packets to an address take, as it stands in its table, and for the table.

    RTM_F_FIB_MATCH, since Linux 4.13, and RTM_F_LOOKUP_TABLE.
    """
    msg = rtmsg()
    msg["family"], msg["dst_len"], msg["flags"] = socket.AF_INET, 32, 0x3000
    msg["attrs"] = [("RTA_DST", ip)]
    return _finish(msg, RTM_GETROUTE, NLM_F_ACK)


def new_address6(index: int, ip: str, prefix: int) -> bytes:
    """Add an IPv6 address that is used at once: nobody else can have it, so the kernel need not ask (IFA_F_NODAD)."""
    msg = ifaddrmsg()
    msg["family"], msg["prefixlen"], msg["index"], msg["flags"] = socket.AF_INET6, prefix, index, 0x02
    msg["attrs"] = [("IFA_LOCAL", ip), ("IFA_ADDRESS", ip)]
    return _finish(msg, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


def default_route6(index: int, gateway: str) -> bytes:
    """Send everything to the bridge, other pods' packets too; RTNH_F_ONLINK: no route to the gateway is needed."""
    msg = rtmsg()
    msg["family"], msg["table"], msg["proto"], msg["scope"], msg["type"] = socket.AF_INET6, 254, 4, 0, 1
    msg["flags"] = 4
    msg["attrs"] = [("RTA_GATEWAY", gateway), ("RTA_OIF", index)]
    return _finish(msg, RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


def default_route(gateway: str) -> bytes:
    msg = rtmsg()
    msg["family"], msg["table"], msg["proto"], msg["scope"], msg["type"] = socket.AF_INET, 254, 4, 0, 1
    msg["attrs"] = [("RTA_GATEWAY", gateway)]
    return _finish(msg, RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)


# ---- nf_tables ---------------------------------------------------------------------------------------


V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)
#: Bytes of an address.
SIZE = {V4: 4, V6: 16}


def _nft(msg: Any, type_: int, flags: int, family: int = V4) -> bytes:
    msg["nfgen_family"] = family
    return _finish(msg, type_, flags)


def batch(begin: bool) -> bytes:
    """NFNL_MSG_BATCH_BEGIN and _END: the kernel carries out all messages between them, or none."""
    return struct.pack("=LHHLLBBH", 20, 0x10 if begin else 0x11, NLM_F_REQUEST, 0, 0, 0, 0, socket.htons(10))


def new_table(table: str, family: int = V4) -> bytes:
    """Make a table with NFT_TABLE_F_OWNER (2; Linux 5.12), which ends with the socket that made it.

    EPERM means that another socket has one of this name, EEXIST that there is one without an owner.
    """
    msg = nft_table_msg()
    msg["attrs"] = [("NFTA_TABLE_NAME", table), ("NFTA_TABLE_FLAGS", 2)]
    return _nft(msg, NEWTABLE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, family)


def new_common_table(table: str, family: int = V4) -> bytes:
    """Make a table without an owner, which stays until it is deleted, or flushed by an administrator."""
    msg = nft_table_msg()
    msg["attrs"] = [("NFTA_TABLE_NAME", table)]
    return _nft(msg, NEWTABLE, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, family)


def del_table(table: str, family: int = V4) -> bytes:
    msg = nft_table_msg()
    msg["attrs"] = [("NFTA_TABLE_NAME", table)]
    return _nft(msg, DELTABLE, NLM_F_ACK, family)


def new_chain(table: str, name: str, family: int = V4) -> bytes:
    hook, priority, kind = HOOKS[name]
    msg = nft_chain_msg()
    msg["attrs"] = [
        ("NFTA_CHAIN_TABLE", table),
        ("NFTA_CHAIN_NAME", name),
        ("NFTA_CHAIN_HOOK", {"attrs": [("NFTA_HOOK_HOOKNUM", hook), ("NFTA_HOOK_PRIORITY", priority)]}),
        ("NFTA_CHAIN_TYPE", kind),
    ]
    return _nft(msg, NEWCHAIN, NLM_F_ACK | NLM_F_CREATE, family)


def get_tables(family: int = V4) -> bytes:
    """Dump all tables of a family."""
    msg = nft_table_msg()
    msg["nfgen_family"] = family
    return _finish(msg, NFT | 1, 0x300)  # NLM_F_DUMP


def get_chains() -> bytes:
    """Dump all chains of all families."""
    msg = nft_chain_msg()
    msg["nfgen_family"] = 0
    return _finish(msg, NFT | 4, 0x300)  # NLM_F_DUMP


def udp_flows(family: int = V4) -> bytes:
    """Dump the entries of the connection tracking of UDP over IPv4 or IPv6; the kernel selects them (Linux 5.8)."""
    return _udp_flows([], 0, family)


def udp_flows_to(port: int, family: int = V4) -> bytes:
    """Dump those of them whose first datagram went to a port."""
    return _udp_flows([("CTA_PROTO_DST_PORT", port)], 1 << 5, family)  # CTA_PROTO_DST_PORT


def _udp_flows(more: list[tuple[str, int]], flags: int, family: int) -> bytes:
    msg = nfct_msg()
    msg["nfgen_family"] = family
    msg["attrs"] = [
        ("CTA_TUPLE_ORIG", {"attrs": [("CTA_TUPLE_PROTO", {"attrs": [("CTA_PROTO_NUM", 17), *more]})]}),
        ("CTA_FILTER", {"attrs": [("CTA_FILTER_ORIG_FLAGS", 1 << 3 | flags)]}),  # CTA_PROTO_NUM
    ]
    return _finish(msg, 1 << 8 | 1, 0x300)  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET; NLM_F_DUMP


def flows_to(pod_ip: str, family: int = V4) -> bytes:
    """Dump the entries for which an address answers; the kernel selects them (Linux 5.8)."""
    msg = nfct_msg()
    msg["nfgen_family"] = family
    source = "CTA_IP_V4_SRC" if family == V4 else "CTA_IP_V6_SRC"
    msg["attrs"] = [
        ("CTA_TUPLE_REPLY", {"attrs": [("CTA_TUPLE_IP", {"attrs": [(source, pod_ip)]})]}),
        ("CTA_FILTER", {"attrs": [("CTA_FILTER_REPLY_FLAGS", FILTER_FLAG_CTA_IP_SRC)]}),
    ]
    return _finish(msg, 1 << 8 | 1, 0x300)


# A rule is a list of expressions over register 1 (and 2): load, compare, act.


def _expr(name: str, *attrs: object) -> Expr:
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": list(attrs)})]}


def _reg(name: str, n: int = 1) -> tuple[str, Expr]:
    return (name, {"value": n})


def _num(name: str, n: int) -> tuple[str, Expr]:
    return (name, {"value": n})


def _cmp(data: bytes, op: int = 0) -> Expr:
    return _expr(
        "cmp",
        _reg("NFTA_CMP_SREG"),
        _num("NFTA_CMP_OP", op),
        ("NFTA_CMP_DATA", {"attrs": [("NFTA_DATA_VALUE", data)]}),
    )


def _meta(key: int, data: bytes, op: int = 0) -> list[Expr]:
    return [_expr("meta", _reg("NFTA_META_DREG"), _num("NFTA_META_KEY", key)), _cmp(data, op)]


def _payload(base: int, offset: int, length: int, register: int = 1) -> Expr:
    return _expr(
        "payload",
        _reg("NFTA_PAYLOAD_DREG", register),
        _num("NFTA_PAYLOAD_BASE", base),
        ("NFTA_PAYLOAD_OFFSET", offset),
        ("NFTA_PAYLOAD_LEN", length),
    )


def _masked(mask: bytes) -> Expr:
    return _expr(
        "bitwise",
        _reg("NFTA_BITWISE_SREG"),
        _reg("NFTA_BITWISE_DREG"),
        ("NFTA_BITWISE_LEN", len(mask)),
        ("NFTA_BITWISE_MASK", {"attrs": [("NFTA_DATA_VALUE", mask)]}),
        ("NFTA_BITWISE_XOR", {"attrs": [("NFTA_DATA_VALUE", bytes(len(mask)))]}),
    )


def _verdict(code: int) -> Expr:
    """Return the verdict: 0 is drop, 1 is accept."""
    data = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", {"value": code})]})]}
    return _expr("immediate", _reg("NFTA_IMMEDIATE_DREG", 0), ("NFTA_IMMEDIATE_DATA", data))


def _load(reg: int, data: bytes) -> Expr:
    return _expr(
        "immediate",
        _reg("NFTA_IMMEDIATE_DREG", reg),
        ("NFTA_IMMEDIATE_DATA", {"attrs": [("NFTA_DATA_VALUE", data)]}),
    )


IIFNAME, OIFNAME = 6, 7
SADDR, DADDR = 12, 16
SADDR6, DADDR6 = 8, 24


def _ifname(key: int, name: str, op: int = 0) -> list[Expr]:
    return _meta(key, name.encode().ljust(16, b"\0"), op)


def _addr(offset: int, ip: str, prefix: int = 32, op: int = 0) -> list[Expr]:
    value = socket.inet_aton(ip)
    mask = ((0xFFFFFFFF << (32 - prefix)) & 0xFFFFFFFF).to_bytes(4, "big")
    if prefix == 32:
        return [_payload(1, offset, 4), _cmp(value, op)]
    return [_payload(1, offset, 4), _masked(mask), _cmp(bytes(a & b for a, b in zip(value, mask, strict=True)), op)]


def _pod(way: str, ip: str, family: int) -> list[Expr]:
    """Return the comparison of the source ("from") or destination ("to") with an address."""
    if family == V4:
        return _addr(SADDR if way == "from" else DADDR, ip)
    return [_payload(1, SADDR6 if way == "from" else DADDR6, 16), _cmp(socket.inet_pton(V6, ip))]


def _local() -> list[Expr]:
    """fib daddr type local"""
    return [
        # pyroute2 models RESULT as flags (UNSPEC = 1, OIF = 2); on the wire it is a number:
        # 3 = NFT_FIB_RESULT_ADDRTYPE, 2 = NFTA_FIB_F_DADDR
        _expr(
            "fib",
            _reg("NFTA_FIB_DREG"),
            ("NFTA_FIB_RESULT", ("NFT_FIB_RESULT_UNSPEC", "NFT_FIB_RESULT_OIF")),
            _num("NFTA_FIB_FLAGS", 2),
        ),
        _cmp(struct.pack("=I", 2)),
    ]


def _ct(key: int) -> Expr:
    return _expr("ct", _reg("NFTA_CT_DREG"), _num("NFTA_CT_KEY", key))


def _dnatted(op: int = 1) -> list[Expr]:
    """ct status dnat; op 0: ct status & dnat == 0"""
    return [_ct(2), _masked(struct.pack("=I", 1 << 5)), _cmp(bytes(4), op)]


NEW, RELATED = 1 << 3, 1 << 2


def _state(bit: int) -> list[Expr]:
    """ct state new, related"""
    return [_ct(0), _masked(struct.pack("=I", bit)), _cmp(bytes(4), 1)]


LABELS = 13  # NFT_CT_LABELS


def _labelled(label: bytes, mask: bytes) -> list[Expr]:
    return [_ct(LABELS), _masked(mask), _cmp(label)]


def _original() -> list[Expr]:
    """ct direction original"""
    return [_ct(1), _cmp(b"\0")]


def _set_label(label: bytes) -> list[Expr]:
    return [_load(1, label), _expr("ct", _num("NFTA_CT_KEY", LABELS), _reg("NFTA_CT_SREG"))]


def _rule(table: str, chain: str, *parts: list[Expr], family: int = V4) -> bytes:
    msg = nft_rule_msg()
    expressions = [e for part in parts for e in part]
    msg["attrs"] = [
        ("NFTA_RULE_TABLE", table),
        ("NFTA_RULE_CHAIN", chain),
        ("NFTA_RULE_EXPRESSIONS", expressions),
    ]
    return _nft(msg, NEWRULE, NLM_F_ACK | NLM_F_CREATE | 0x800, family)  # NLM_F_APPEND


# The published ports of a protocol are two maps, so that a thousand cost a packet as much as one: "ports" of those that are
# published on every address of the host, "addresses" of those on one.  Name → (number in the batch, number of the protocol); a
# map's value is an address and a port.  The tables of both families have maps of these names.
MAPS = {"ports": (1, 6), "addresses": (2, 6), "udp-ports": (3, 17), "udp-addresses": (4, 17)}

#: nft's numbers for the types inet_service, and "ipv4_addr . inet_service" and its like.
SERVICE = 13
ADDRESS_AND_SERVICE = {V4: 7 << 6 | SERVICE, V6: 8 << 6 | SERVICE}


def new_map(table: str, name: str, family: int = V4) -> bytes:
    number, both = MAPS[name][0], SIZE[family] + 4
    kind, length = (ADDRESS_AND_SERVICE[family], both) if name.endswith("addresses") else (SERVICE, 2)
    msg = nft_set_msg()
    msg["attrs"] = [
        ("NFTA_SET_TABLE", table),
        ("NFTA_SET_NAME", name),
        ("NFTA_SET_FLAGS", ("NFT_SET_MAP",)),
        ("NFTA_SET_KEY_TYPE", kind),
        ("NFTA_SET_KEY_LEN", length),
        ("NFTA_SET_DATA_TYPE", ADDRESS_AND_SERVICE[family]),
        ("NFTA_SET_DATA_LEN", both),
        ("NFTA_SET_ID", number),
    ]
    return _nft(msg, NEWSET, NLM_F_ACK | NLM_F_CREATE, family)


def map_elements(table: str, name: str, host_ip: str, port: int, pod_ip: str, pod_port: int, family: int = V4) -> bytes:
    """Add one element; wire.py repeats it, so the list is the last attribute."""
    key = port.to_bytes(2, "big")
    if name.endswith("addresses"):
        key = socket.inet_pton(family, host_ip) + key + bytes(2)
    value = socket.inet_pton(family, pod_ip) + pod_port.to_bytes(2, "big") + bytes(2)
    element = {
        "attrs": [
            ("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", key)]}),
            ("NFTA_SET_ELEM_DATA", {"attrs": [("NFTA_DATA_VALUE", value)]}),
        ]
    }
    msg = nft_set_elem_list_msg()
    msg["attrs"] = [
        ("NFTA_SET_ELEM_LIST_TABLE", table),
        ("NFTA_SET_ELEM_LIST_SET", name),
        ("NFTA_SET_ELEM_LIST_SET_ID", MAPS[name][0]),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", [element]),
    ]
    return _nft(msg, NEWSETELEM, NLM_F_ACK | NLM_F_CREATE, family)


def no_map_elements(table: str, name: str, host_ip: str, port: int, family: int = V4) -> bytes:
    """Remove one element; wire.py repeats it, so the list is the last attribute."""
    key = port.to_bytes(2, "big")
    if name.endswith("addresses"):
        key = socket.inet_pton(family, host_ip) + key + bytes(2)
    element = {"attrs": [("NFTA_SET_ELEM_KEY", {"attrs": [("NFTA_DATA_VALUE", key)]})]}
    msg = nft_set_elem_list_msg()
    msg["attrs"] = [
        ("NFTA_SET_ELEM_LIST_TABLE", table),
        ("NFTA_SET_ELEM_LIST_SET", name),
        ("NFTA_SET_ELEM_LIST_ELEMENTS", [element]),
    ]
    return _nft(msg, NFT | 14, NLM_F_ACK, family)  # NFT_MSG_DELSETELEM


FIRST_WORD = 8  # NFT_REG32_00: the first word of register 1


def rule_publish(table: str, chain: str, name: str, family: int = V4) -> bytes:
    """Send what a protocol brings for a port of this host to the pod, as a map says.

    Not what goes to ::1: nothing makes the kernel route the answer back to that (route_localnet is IPv4's).
    """
    port, protocol = _payload(2, 2, 2), MAPS[name][1].to_bytes(1, "big")
    second = FIRST_WORD + SIZE[family] // 4
    key = [*_local(), *_meta(16, protocol), port]
    if name.endswith("addresses"):
        address = _payload(1, DADDR if family == V4 else DADDR6, SIZE[family])
        key = [*_meta(16, protocol), address, _payload(2, 2, 2, second)]
    elif family == V6 and chain == "output":
        key = [_payload(1, DADDR6, 16), _cmp(socket.inet_pton(V6, "::1"), 1), *key]
    lookup = _expr(
        "lookup",
        ("NFTA_LOOKUP_SET", name),
        _reg("NFTA_LOOKUP_SREG"),
        _reg("NFTA_LOOKUP_DREG"),
        ("NFTA_LOOKUP_SET_ID", MAPS[name][0]),
    )
    nat = _expr(
        "nat",
        _num("NFTA_NAT_TYPE", 1),
        ("NFTA_NAT_FAMILY", family),
        _reg("NFTA_NAT_REG_ADDR_MIN"),
        _reg("NFTA_NAT_REG_PROTO_MIN", second),
    )
    return _rule(table, chain, key, [lookup, nat], family=family)


def rule_masquerade_out(table: str, bridge: str, pod_ip: str, family: int = V4) -> bytes:
    """Give what the pod sends anywhere but over its bridge the host's address."""
    away = [*_pod("from", pod_ip, family), *_ifname(OIFNAME, bridge, 1)]
    return _rule(table, "postrouting", away, [_expr("masq")], family=family)


def rule_masquerade_loopback(table: str, bridge: str, pod_ip: str) -> bytes:
    """Replace the source 127.0.0.1 in what reaches the pod: it could not answer that."""
    return _rule(
        table,
        "postrouting",
        _addr(SADDR, "127.0.0.0", 8),
        _addr(DADDR, pod_ip),
        _ifname(OIFNAME, bridge),
        [_expr("masq")],
    )


def rule_masquerade_hairpin(table: str, bridge: str, pod_ip: str, subnet: str, netmask: str) -> bytes:
    """Make a pod of this network that came through a published port get its answers through the host (hairpin)."""
    return _rule(
        table,
        "postrouting",
        [_payload(1, SADDR, 4), _masked(socket.inet_aton(netmask)), _cmp(socket.inet_aton(subnet))],
        _addr(DADDR, pod_ip),
        _dnatted(),
        _ifname(OIFNAME, bridge),
        [_expr("masq")],
    )


def rule_masquerade_hairpin6(table: str, bridge: str, pod_ip6: str, net6: bytes) -> bytes:
    """Do the same for pods of this /64, of which `net6` is the first half of an address."""
    return _rule(
        table,
        "postrouting",
        [_payload(1, SADDR6, 8), _cmp(net6)],
        _pod("to", pod_ip6, V6),
        _dnatted(),
        _ifname(OIFNAME, bridge),
        [_expr("masq")],
        family=V6,
    )


def rule_guard_loopback(table: str, bridge: str) -> bytes:
    """Drop what comes over the bridge for 127.0.0.0/8, which route_localnet would let in (CVE-2020-8558)."""
    return _rule(table, "guard", _ifname(IIFNAME, bridge), _addr(DADDR, "127.0.0.0", 8), [_verdict(0)])


# A connection belongs to the pod that began it and to that for whose published port it began, and its label says so (16 bytes
# that conntrack keeps with it, half for each; what is set is added): entries of a dead pod must not lead to the next one with its
# address.

FIRST_HALF, SECOND_HALF = b"\xff" * 8 + bytes(8), bytes(8) + b"\xff" * 8


def rule_label_out(table: str, bridge: str, pod_ip: str, began: bytes, family: int = V4) -> bytes:
    """Label as begun by the pod whatever it sends away from its bridge, but for answers …"""
    away = [*_pod("from", pod_ip, family), *_ifname(OIFNAME, bridge, 1)]
    return _rule(table, "forward", away, _original(), _set_label(began), family=family)


def rule_label_in(table: str, bridge: str, pod_ip: str, reached: bytes, family: int = V4) -> bytes:
    """… and what begins at a published port, on its way to the bridge, where nobody else has this address …"""
    here = [*_pod("to", pod_ip, family), *_ifname(OIFNAME, bridge)]
    return _rule(table, "forward", here, _dnatted(), _state(NEW), _set_label(reached), family=family)


def rule_forward_began(table: str, bridge: str, pod_ip: str, began: bytes, family: int = V4) -> bytes:
    """… and let in the answers to what the pod began …"""
    outside = [*_pod("to", pod_ip, family), *_ifname(IIFNAME, bridge, 1)]
    return _rule(table, "forward", outside, _labelled(began, FIRST_HALF), [_verdict(1)], family=family)


def rule_forward_reached(table: str, bridge: str, pod_ip: str, reached: bytes, family: int = V4) -> bytes:
    """… and what came for its published ports …"""
    outside = [*_pod("to", pod_ip, family), *_ifname(IIFNAME, bridge, 1)]
    return _rule(table, "forward", outside, _labelled(reached, SECOND_HALF), [_verdict(1)], family=family)


def rule_forward_related(table: str, bridge: str, pod_ip: str, family: int = V4) -> bytes:
    """… and what the kernel relates to it (ICMP errors) …"""
    outside = [*_pod("to", pod_ip, family), *_ifname(IIFNAME, bridge, 1)]
    return _rule(table, "forward", outside, _state(RELATED), [_verdict(1)], family=family)


def rule_forward_closed(table: str, bridge: str, pod_ip: str, family: int = V4) -> bytes:
    """… and nothing else from outside the bridge, even if a neighbour routes straight to the pod's address."""
    outside = [*_pod("to", pod_ip, family), *_ifname(IIFNAME, bridge, 1)]
    return _rule(table, "forward", outside, [_verdict(0)], family=family)


def rule_forward_nothing_new(table: str, bridge: str, family: int = V4) -> bytes:
    """Let nothing new in from outside but published ports, for when a pod's own table is gone and the pod is not."""
    outside = [*_ifname(OIFNAME, bridge), *_ifname(IIFNAME, bridge, 1)]
    return _rule(table, "forward", outside, _dnatted(0), _state(NEW), [_verdict(0)], family=family)


def rule_forward_apart(table: str, bridge: str, start: str) -> bytes:
    """Lead pods to none of another bridge, whose name begins with `start`, but by published ports.

    Masqueraded, what they send would look like that bridge's own to a pod that is closed in (portfilter.closed_arrivals).
    """
    others = [*_ifname(IIFNAME, bridge), *_ifname(OIFNAME, bridge, 1), *_meta(OIFNAME, start.encode())]
    return _rule(table, "forward", others, _dnatted(0), [_verdict(0)])


# ---- templates ---------------------------------------------------------------------------------------

#: Sample values that occur nowhere else in a message, and their bytes.  Names have one fixed length.
SAMPLES: dict[str, tuple[object, bytes]] = {
    "bridge": ("nsrun0", b"nsrun0"),
    "veth": ("nsr@@@@@@@@", b"nsr@@@@@@@@"),
    "table": ("nsrun-########", b"nsrun-########"),
    "alias": ("nsrun:%%%%%%%%%%%%", b"nsrun:%%%%%%%%%%%%"),
    "began": (b"began:&&&&&&&&&&", b"began:&&&&&&&&&&"),
    "reached": (b"reached:&&&&&&&&", b"reached:&&&&&&&&"),
    "bridge_index": (0x5A5B5C5D, struct.pack("=I", 0x5A5B5C5D)),
    "netns_fd": (0x6A6B6C6D, struct.pack("=I", 0x6A6B6C6D)),
    "index": (0x4A4B4C4D, struct.pack("=I", 0x4A4B4C4D)),
    "mtu": (0x2A2B2C2D, struct.pack("=I", 0x2A2B2C2D)),
    "ip_word": (0x3A3B3C3D, struct.pack("=I", 0x3A3B3C3D)),
    "mac": (bytes.fromhex("f2f3f4f5f6f7"), bytes.fromhex("f2f3f4f5f6f7")),
    "pod_ip": ("237.238.239.241", bytes((237, 238, 239, 241))),
    "host_ip": ("227.228.229.231", bytes((227, 228, 229, 231))),
    "gateway": ("217.218.219.221", bytes((217, 218, 219, 221))),
    "subnet": ("207.208.209.211", bytes((207, 208, 209, 211))),
    "netmask": ("197.198.199.201", bytes((197, 198, 199, 201))),
    "prefix": (bytes((socket.AF_INET, 0xA5)), bytes((socket.AF_INET, 0xA5))),
    "pod_ip6": ("fdd1:d2d3:d4d5:d6d7:d8d9:dadb:dcdd:dedf", bytes.fromhex("fdd1d2d3d4d5d6d7d8d9dadbdcdddedf")),
    "host_ip6": ("fde1:e2e3:e4e5:e6e7:e8e9:eaeb:eced:eeef", bytes.fromhex("fde1e2e3e4e5e6e7e8e9eaebecedeeef")),
    "gateway6": ("fd91:9293:9495:9697:9899:9a9b:9c9d:9e9f", bytes.fromhex("fd9192939495969798999a9b9c9d9e9f")),
    "net6": (bytes.fromhex("fd71727374757677"), bytes.fromhex("fd71727374757677")),
    "high6": (0x7A7B7C7D, struct.pack("=I", 0x7A7B7C7D)),
    "low6": (0x8A8B8C8D, struct.pack("=I", 0x8A8B8C8D)),
    "mac_high": (0x4A4B4C4E, struct.pack("=I", 0x4A4B4C4E)),
    "mac_low": (0x5A5B5C5E, struct.pack("=I", 0x5A5B5C5E)),
    "gateway_word": (0x6A6B6C6E, struct.pack("=I", 0x6A6B6C6E)),
    "net_word": (0x7A7B7C7E, struct.pack("=I", 0x7A7B7C7E)),
    "mask_word": (0xAAABACAE, struct.pack("=I", 0xAAABACAE)),
    "third6": (0x8A8B8C8E, struct.pack("=I", 0x8A8B8C8E)),
    "fourth6": (0x9A9B9C9E, struct.pack("=I", 0x9A9B9C9E)),
    "port": (0xB1B2, bytes.fromhex("b1b2")),
    "pod_port": (0xC1C2, bytes.fromhex("c1c2")),
}

NET_WORDS = ("net_word", "mask_word")
BRIDGE_WORDS = ("mac_high", "mac_low", "gateway_word", *NET_WORDS)

#: name → (function, its parameters as names of SAMPLES or constants)
MESSAGES: dict[str, tuple[Callable[..., bytes], tuple[Any, ...]]] = {
    "new_bridge": (new_bridge, ("bridge", "mac")),
    "new_veth": (new_veth, ("veth", "bridge_index", "netns_fd", "mac", "mtu")),
    "port_up": (port_up, ("index", "alias")),
    "alias_bridge": (alias_bridge, ("bridge", "alias")),
    "get_link": (get_link, ("index",)),
    "get_ports": (get_ports, ("bridge_index",)),
    "fdb_entry": (fdb_entry, ("index", "mac")),
    "neighbour": (neighbour, ("bridge_index", "pod_ip", "mac")),
    "neighbour6": (neighbour, ("index", "pod_ip6", "mac", V6)),
    "ingress": (ingress, ("index",)),
    "port_filter": (port_filter, ("index", "ip_word")),
    "port_filter6": (port_filter, ("index", "ip_word", "high6", "low6")),
    "both_ways": (both_ways, ("index",)),
    "isolating_filter": (isolating_filter, ("index", "ip_word", *BRIDGE_WORDS)),
    "isolating_filter6": (isolating_filter, ("index", "ip_word", "high6", "low6", *BRIDGE_WORDS, "third6", "fourth6")),
    "arrival_filter": (arrival_filter, ("index", *BRIDGE_WORDS)),
    "arrival_filter6": (arrival_filter, ("index", "high6", "low6", *BRIDGE_WORDS, "third6", "fourth6")),
    "closed_filter": (closed_filter, ("index", "ip_word", *NET_WORDS)),
    "closed_isolating_filter": (closed_isolating_filter, ("index", "ip_word", *BRIDGE_WORDS)),
    "closed_arrival_filter": (closed_arrival_filter, ("index", *BRIDGE_WORDS, False)),
    "closed_isolating_arrival_filter": (closed_arrival_filter, ("index", *BRIDGE_WORDS, True)),
    "neighbour_gateway": (neighbour, ("index", "gateway", "mac")),
    "link_up": (link_up, ("index",)),
    "del_link": (del_link, ("index",)),
    "new_address": (new_address, ("index", "pod_ip", "prefix")),
    "get_addresses": (get_addresses, ()),
    "get_route": (get_route, ("pod_ip",)),
    "default_route": (default_route, ("gateway",)),
    "bridge_address6": (new_address6, ("index", "gateway6", 64)),
    "pod_address6": (new_address6, ("index", "pod_ip6", 128)),
    "default_route6": (default_route6, ("index", "gateway6")),
    "get_tables": (get_tables, ()),
    "get_chains": (get_chains, ()),
    "udp_flows": (udp_flows, ()),
    "udp_flows_to": (udp_flows_to, ("port",)),
    "flows_to": (flows_to, ("pod_ip",)),
    "batch_begin": (batch, (True,)),
    "batch_end": (batch, (False,)),
    "new_table": (new_table, ("table",)),
    "new_common_table": (new_common_table, ("table",)),
    "del_table": (del_table, ("table",)),
    **{f"map_{name}": (new_map, ("table", f"'{name}")) for name in MAPS},
    **{
        f"elements_{name}": (map_elements, ("table", f"'{name}", "host_ip", "port", "pod_ip", "pod_port"))
        for name in MAPS
    },
    **{f"no_elements_{name}": (no_map_elements, ("table", f"'{name}", "host_ip", "port")) for name in MAPS},
    **{
        f"publish_{name}_{chain}": (rule_publish, ("table", f"'{chain}", f"'{name}"))
        for name in MAPS
        for chain in ("prerouting", "output")
    },
    "masquerade_out": (rule_masquerade_out, ("table", "bridge", "pod_ip")),
    "masquerade_loopback": (rule_masquerade_loopback, ("table", "bridge", "pod_ip")),
    "masquerade_hairpin": (rule_masquerade_hairpin, ("table", "bridge", "pod_ip", "subnet", "netmask")),
    "guard_loopback": (rule_guard_loopback, ("table", "bridge")),
    "label_out": (rule_label_out, ("table", "bridge", "pod_ip", "began")),
    "label_in": (rule_label_in, ("table", "bridge", "pod_ip", "reached")),
    "forward_began": (rule_forward_began, ("table", "bridge", "pod_ip", "began")),
    "forward_reached": (rule_forward_reached, ("table", "bridge", "pod_ip", "reached")),
    "forward_related": (rule_forward_related, ("table", "bridge", "pod_ip")),
    "forward_closed": (rule_forward_closed, ("table", "bridge", "pod_ip")),
    "forward_nothing_new": (rule_forward_nothing_new, ("table", "bridge")),
    "forward_apart_named": (rule_forward_apart, ("table", "bridge", "'nsrb")),
    "forward_apart_default": (rule_forward_apart, ("table", "bridge", "'nsru")),
    **{f"chain_{name}": (new_chain, ("table", f"'{name}")) for name in HOOKS},
}


def _ip6(name: str) -> tuple[Callable[..., bytes], tuple[Any, ...]]:
    """Return a message of MESSAGES as the one of family ip6."""
    function, parameters = MESSAGES[name]
    return function, (*(f"{p}6" if p in ("pod_ip", "host_ip") else p for p in parameters), V6)


MESSAGES["masquerade_hairpin6"] = (rule_masquerade_hairpin6, ("table", "bridge", "pod_ip6", "net6"))
MESSAGES |= {
    f"{name}6": _ip6(name)
    for name in [
        "get_tables", "udp_flows", "udp_flows_to", "flows_to", "new_table", "new_common_table", "del_table",
        *(f"{part}_{name}" for part in ("map", "elements", "no_elements") for name in MAPS),
        *(f"publish_{name}_{chain}" for name in MAPS for chain in ("prerouting", "output")),
        "masquerade_out", "label_out", "label_in", "forward_began", "forward_reached", "forward_related", "forward_closed",
        "forward_nothing_new", *(f"chain_{name}" for name in HOOKS if name != "guard"),
    ]
}  # fmt: skip


def encode(name: str, values: dict[str, Any]) -> bytes:
    """The message `name` with real values, by pyroute2 itself."""
    function, parameters = MESSAGES[name]
    args = [p[1:] if isinstance(p, str) and p[0] == "'" else values[p] if isinstance(p, str) else p for p in parameters]
    return function(*args)


def templates() -> dict[str, bytes]:
    samples = {name: value for name, (value, _) in SAMPLES.items()}
    return {name: encode(name, samples) for name in MESSAGES}
