package netfilter

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// maxText bounds an expression in words, in bytes.
const maxText = 4096

// shapes name the attributes of the kernel's expressions in their order, from 1
// on; what follows a colon tells how one is read, which without it is as a
// number. What has no name is told by its own number, in hex.
var shapes = map[string]string{
	"bitwise":      "sreg dreg len mask:data xor:data op data:data",
	"byteorder":    "sreg dreg op len size",
	"cmp":          "sreg op:cmp data:data",
	"connlimit":    "count flags",
	"counter":      "bytes packets",
	"ct":           "dreg key:ct direction sreg",
	"dup":          "sreg_addr sreg_dev",
	"dynset":       "set:text set_id op sreg_key sreg_data timeout expr:expr pad flags exprs:exprs",
	"exthdr":       "dreg type offset len flags op sreg",
	"fib":          "dreg result flags",
	"flow_offload": "table:text",
	"fwd":          "sreg_dev sreg_addr family",
	"hash":         "sreg dreg len modulus seed offset type",
	"immediate":    "dreg data:data",
	"last":         "set msecs",
	"limit":        "rate unit burst type flags",
	"log":          "group prefix:text snaplen qthreshold level flags",
	"lookup":       "set:text sreg dreg set_id flags",
	"masq":         "flags sreg_port_min sreg_port_max",
	"match":        "name:text rev info:hex",
	"meta":         "dreg key:meta sreg",
	"nat":          "type:nat family sreg_addr_min sreg_addr_max sreg_port_min sreg_port_max flags",
	"numgen":       "dreg modulus type offset",
	"objref":       "type name:text sreg set:text set_id",
	"payload":      "dreg base:base offset len sreg csum_type csum_offset csum_flags",
	"queue":        "num total flags sreg",
	"quota":        "bytes flags pad consumed",
	"range":        "sreg op:cmp from:data to:data",
	"redir":        "sreg_port_min sreg_port_max flags",
	"reject":       "type code",
	"rt":           "dreg key",
	"socket":       "key dreg level",
	"target":       "name:text rev info:hex",
	"tproxy":       "family sreg_addr sreg_port",
}

// words name what an attribute's number stands for.
var words = map[string][]string{
	"base": {"link", "network", "transport", "inner"},
	"cmp":  {"eq", "neq", "lt", "lte", "gt", "gte"},
	"ct": {"state", "direction", "status", "mark", "secmark", "expiration", "helper", "l3proto", "src", "dst", "protocol", "proto_src", "proto_dst",
		"labels", "packets", "bytes", "avgpkt", "zone", "eventmask", "src_ip", "dst_ip", "src_ip6", "dst_ip6", "id"},
	"meta": {"len", "protocol", "priority", "mark", "iif", "oif", "iifname", "oifname", "iiftype", "oiftype", "skuid", "skgid", "nftrace", "rtclassid",
		"secmark", "nfproto", "l4proto", "ibrname", "obrname", "pkttype", "cpu", "iifgroup", "oifgroup", "cgroup", "prandom", "secpath", "iifkind",
		"oifkind", "ibrpvid", "ibrvproto", "time", "day", "hour", "sdif", "sdifname", "broute"},
	"nat": {"snat", "dnat"},
}

// expressions tells a list of expressions in words.
func expressions(b []byte) (all []string) {
	for _, value := range netlink.Attributes(b) {
		if len(all) == maxList {
			return all
		}
		all = append(all, named(value))
	}
	return all
}

// named tells one expression: its name, and attributes of its own.
func named(b []byte) string {
	return expression(netlink.String(find(b, 1)), find(b, 2))
}

// expression tells an expression as its name and KEY=VALUE, such as
//
//	cmp sreg=1 op=eq data=0a000001
//
// Registers are the kernel's numbers, data is in hex and in network order, or in
// this machine's where a key of meta or ct is.
func expression(name string, b []byte) string {
	shape := strings.Fields(shapes[name])
	said := []string{name}
	size := len(name)
	for kind, value := range netlink.Attributes(b) {
		field, how := strconv.Itoa(int(kind)), "hex"
		if kind >= 1 && int(kind) <= len(shape) {
			var typed bool
			if field, how, typed = strings.Cut(shape[kind-1], ":"); !typed {
				how = "number"
			}
		}
		word := field + "=" + tell(how, value)
		if size += 1 + len(word); size > maxText {
			said = append(said, "…")
			break
		}
		said = append(said, word)
	}
	return strings.Join(said, " ")
}

func tell(how string, value []byte) string {
	switch how {
	case "hex":
		return hexText(value)
	case "text":
		return strconv.Quote(netlink.String(value))
	case "data":
		return data(value)
	case "expr":
		return "[" + flat(value) + "]"
	case "exprs":
		return "[" + hexText(value) + "]"
	}
	n := netlink.BigUint(value)
	if names := words[how]; n < uint64(len(names)) {
		return names[n]
	}
	return strconv.FormatUint(n, 10)
}

// flat tells an expression that is inside another, and what is inside it in hex:
// the kernel nests no deeper, and hostile bytes shall not either.
func flat(b []byte) string {
	return netlink.String(find(b, 1)) + " " + hexText(find(b, 2))
}

// verdicts name the negative ones, NFT_… of linux/netfilter/nf_tables.h, and
// NF_… of linux/netfilter.h.
var verdicts = map[int32]string{-5: "return", -4: "goto", -3: "jump", -2: "break", -1: "continue", 0: "drop", 1: "accept", 2: "stolen", 3: "queue", 4: "repeat"}

// data tells NFTA_DATA_…: a value in hex, or a verdict with its chain.
func data(b []byte) string {
	for kind, value := range netlink.Attributes(b) {
		switch kind {
		case 1:
			return hexText(value)
		case 2:
			code := int32(number(find(value, 1)))
			said, ok := verdicts[code]
			if !ok {
				said = fmt.Sprintf("verdict %d", code)
			}
			if chain := netlink.String(find(value, 2)); chain != "" {
				said += " " + strconv.Quote(chain)
			}
			return said
		}
	}
	return ""
}
