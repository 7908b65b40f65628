package artifact

import (
	"encoding/hex"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netfilter"
	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// PacketRule is a row of the table nftables: a table, chain, rule, set, element,
// object or flowtable of nf_tables. What it does not have is left out. The rules
// of iptables are among them where it is the one that works by nf_tables.
type PacketRule struct {
	NetNS  uint64 `json:"netns"`
	Item   string `json:"item"`   // table, chain, rule, set, element, object, flowtable
	Family string `json:"family"` // ip, ip6, inet, arp, bridge, netdev
	Table  Text   `json:"table"`
	Chain  Text   `json:"chain,omitempty"`  // that a rule is in; its rows are in their order
	Name   Text   `json:"name,omitempty"`   // of a chain, set, object or flowtable; of an element its set's
	Handle uint64 `json:"handle,omitempty"` // names it within its table
	Flags  uint32 `json:"flags,omitempty"`  // as in linux/netfilter/nf_tables.h: of a table 1 is dormant
	Type   Text   `json:"type,omitempty"`   // of a base chain: filter, nat, route; of an object: counter, quota …

	Hook     string  `json:"hook,omitempty"` // where a base chain takes packets: input, output …
	Priority *int32  `json:"priority,omitempty"`
	Policy   string  `json:"policy,omitempty"` // of a base chain: accept, drop
	Devices  []Text  `json:"devices,omitempty"`
	Owner    uint32  `json:"owner,omitempty"` // of a table: the netlink port, most often PID, of whom alone may change it
	Packets  uint64  `json:"packets,omitempty"`
	Bytes    uint64  `json:"bytes,omitempty"`
	Comment  Text    `json:"comment,omitempty"`
	TimeoutS float64 `json:"timeout_s,omitempty"`

	// Expressions are what a rule does, one after the other, by the kernel's
	// names: "cmp sreg=1 op=eq data=0a000001", "immediate dreg=0 data=drop".
	Expressions []Text `json:"expressions,omitempty"`

	Key      string `json:"key,omitempty"` // of an element, in hex
	KeyEnd   string `json:"key_end,omitempty"`
	Data     Text   `json:"data,omitempty"`     // that a map has for it: hex, a verdict or an object
	KeyType  uint32 `json:"key_type,omitempty"` // of a set, by nft(8)'s numbers
	DataType uint32 `json:"data_type,omitempty"`
}

// fillNFTables writes the table nftables, which needs no program of the host.
// Where the kernel has not loaded nf_tables there are no rules of it.
func fillNFTables(h *Host, s *sheet) error {
	if h.running() && !(h.askable("nfnetlink") && h.askable("nf_tables")) {
		s.note("nftables", NoteNone, errWouldLoad.Error())
		return nil
	}
	return h.eachNetSpace(s, unix.NETLINK_NETFILTER, "nftables", askNFTables, nil)
}

func askNFTables(a *answer, c *netlink.Conn, ns namespace) error {
	return netfilter.Items(a.s.ctx, c, func(i *netfilter.Item) error {
		row := packetRule(i)
		row.NetNS = ns.id
		return a.put(row)
	}, a.odd)
}

func packetRule(i *netfilter.Item) *PacketRule {
	row := &PacketRule{Item: i.Kind, Family: packetFamily(i.Family), Table: clip(i.Table, maxWord), Chain: clip(i.Chain, maxWord), Name: clip(i.Name, maxWord),
		Handle: i.Handle, Flags: i.Flags, Type: clip(i.Type, maxWord), Owner: i.Owner, Packets: i.Packets, Bytes: i.Bytes, Comment: clip(i.Comment, maxWord),
		TimeoutS: float64(i.Timeout) / 1000, Key: hex.EncodeToString(i.Key), KeyEnd: hex.EncodeToString(i.KeyEnd), Data: clip(i.Data, maxPath),
		KeyType: i.KeyType, DataType: i.DataType}
	for _, said := range i.Expressions {
		row.Expressions = append(row.Expressions, Text(said))
	}
	if i.Policy != nil {
		row.Policy = map[uint32]string{0: "drop", 1: "accept"}[*i.Policy]
	}
	if i.Hook != nil {
		row.Hook, row.Priority = hookName(i.Family, i.Hook.Number), &i.Hook.Priority
		for _, name := range i.Hook.Devices {
			row.Devices = append(row.Devices, clip(name, maxWord))
		}
	}
	return row
}

// Families NFPROTO_… of linux/netfilter.h.
const (
	packetInet   = 1
	packetIP     = 2
	packetARP    = 3
	packetNetdev = 5
	packetBridge = 7
	packetIP6    = 10
)

func packetFamily(n uint8) string {
	name, ok := map[uint8]string{packetInet: "inet", packetIP: "ip", packetARP: "arp", packetNetdev: "netdev", packetBridge: "bridge", packetIP6: "ip6"}[n]
	if !ok {
		return strconv.Itoa(int(n))
	}
	return name
}

// hookName names NF_INET_…, NF_ARP_… or NF_NETDEV_….
func hookName(family uint8, n uint32) string {
	names := []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}
	switch family {
	case packetARP:
		names = []string{"input", "output", "forward"}
	case packetNetdev:
		names = []string{"ingress", "egress"}
	}
	return at(names, uint8(min(n, 255)))
}
