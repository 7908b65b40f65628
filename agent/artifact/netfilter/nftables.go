package netfilter

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// maxList bounds the expressions of a rule, the devices of a chain, and the
// elements of a set in one message.
const maxList = 4096

// Item is one thing of nf_tables. What it does not have is zero.
type Item struct {
	Kind               string // table, chain, rule, set, element, object, flowtable
	Family             uint8  // NFPROTO_…
	Table, Chain, Name string // Chain is a rule's; Name is the thing's own, of an element its set's
	Handle             uint64
	Flags              uint32 // of a table 1 dormant, 2 owned; of a set as nft_set_flags; of an element 1 the end of a range
	Type               string // of a base chain: filter, nat, route; of an object: counter, quota …
	Hook               *Hook  // of a base chain or flowtable
	Policy             *uint32
	Packets, Bytes     uint64   // of a base chain that counts
	Comment            string   // as nft(8) keeps it
	Expressions        []string // of a rule, an element or an object, in words
	Key, KeyEnd        []byte
	KeyType, DataType  uint32 // of a set: nft(8)'s own numbers
	Data               string // of an element of a map
	Timeout            uint64 // milliseconds
	Owner              uint32 // netlink port of the program that owns a table
}

// Hook is where packets come to a base chain or flowtable.
type Hook struct {
	Number   uint32 // by family: of NF_INET_… or NF_NETDEV_…
	Priority int32
	Devices  []string
}

// list is one kind of things and how the kernel lists them: NFT_MSG_GET…, its
// answer, and the reader of one attribute.
type list struct {
	kind        string
	ask, answer uint16
	read        func(i *Item, kind uint16, value []byte)
}

var lists = []list{
	{"table", 1, 0, readTable},
	{"chain", 4, 3, readChain},
	{"set", 10, 9, readSet},
	{"object", 19, 18, readObject},
	{"flowtable", 23, 22, readFlowtable},
	{"rule", 7, 6, readRule},
}

// Items lists the whole of nf_tables: tables, chains, sets, objects, flowtables,
// the rules in their order, and then the elements of at most 4,096 sets. A kernel
// that has no list of a kind answers with an error, of which Items tells after
// it has asked for the others.
func Items(ctx context.Context, c *netlink.Conn, do func(*Item) error, odd func(error)) error {
	var sets []*Item
	var failures []error
	changed := false
	for _, l := range lists {
		err := dump(ctx, c, nfTables, l.ask, l.answer, 0, nil, l.parse, func(i *Item) error {
			if i.Kind == "set" && len(sets) < maxList {
				sets = append(sets, i)
			}
			return do(i)
		}, odd)
		if err = settle(err, &changed); err != nil && !refused(err) {
			return err
		} else if err != nil {
			failures = append(failures, fmt.Errorf("cannot list each %s of nf_tables: %w", l.kind, err))
		}
	}
	for _, set := range sets {
		if err := settle(elements(ctx, c, set, do, odd), &changed); err != nil && !refused(err) {
			return err
		} else if err != nil {
			failures = append(failures, fmt.Errorf("cannot list the elements of set %.64q: %w", set.Name, err))
		}
	}
	if len(failures) == 0 && changed {
		return netlink.ErrChanged
	}
	return errors.Join(failures...)
}

// settle notes that a list changed, which is no reason to end.
func settle(err error, changed *bool) error {
	if errors.Is(err, netlink.ErrChanged) {
		*changed = true
		return nil
	}
	return err
}

// refused tells whether the kernel itself answered with an error, so that it can
// be asked for something else.
func refused(err error) bool {
	_, direct := err.(unix.Errno)
	return direct
}

func (l list) parse(family uint8, b []byte) (*Item, error) {
	i := &Item{Kind: l.kind, Family: family}
	for kind, value := range netlink.Attributes(b) {
		l.read(i, kind, value)
	}
	if i.Table == "" {
		return nil, fmt.Errorf("cannot read a %s of nf_tables: it names no table", l.kind)
	}
	return i, nil
}

func readTable(i *Item, kind uint16, value []byte) {
	switch kind {
	case 1:
		i.Table = netlink.String(value)
	case 2:
		i.Flags = number(value)
	case 4:
		i.Handle = netlink.BigUint(value)
	case 6:
		i.Comment = comment(value)
	case 7:
		i.Owner = number(value)
	}
}

func readChain(i *Item, kind uint16, value []byte) {
	switch kind {
	case 1:
		i.Table = netlink.String(value)
	case 2:
		i.Handle = netlink.BigUint(value)
	case 3:
		i.Name = netlink.String(value)
	case 4:
		i.Hook = hook(value)
	case 5:
		policy := number(value)
		i.Policy = &policy
	case 7:
		i.Type = netlink.String(value)
	case 8:
		i.Bytes, i.Packets = netlink.BigUint(find(value, 1)), netlink.BigUint(find(value, 2))
	case 10:
		i.Flags = number(value)
	case 12:
		i.Comment = comment(value)
	}
}

func readRule(i *Item, kind uint16, value []byte) {
	switch kind {
	case 1:
		i.Table = netlink.String(value)
	case 2:
		i.Chain = netlink.String(value)
	case 3:
		i.Handle = netlink.BigUint(value)
	case 4:
		i.Expressions = expressions(value)
	case 7:
		i.Comment = comment(value)
	}
}

func readSet(i *Item, kind uint16, value []byte) {
	switch kind {
	case 1:
		i.Table = netlink.String(value)
	case 2:
		i.Name = netlink.String(value)
	case 3:
		i.Flags = number(value)
	case 4:
		i.KeyType = number(value)
	case 6:
		i.DataType = number(value)
	case 11:
		i.Timeout = netlink.BigUint(value)
	case 16:
		i.Handle = netlink.BigUint(value)
	}
}

// objects name NFT_OBJECT_… of linux/netfilter/nf_tables.h.
var objects = []string{"", "counter", "quota", "ct helper", "limit", "connlimit", "tunnel", "ct timeout", "secmark", "ct expectation", "synproxy"}

func readObject(i *Item, kind uint16, value []byte) {
	switch kind {
	case 1:
		i.Table = netlink.String(value)
	case 2:
		i.Name = netlink.String(value)
	case 3:
		i.Type = fmt.Sprint(number(value))
		if n := number(value); n < uint32(len(objects)) {
			i.Type = objects[n]
		}
	case 4:
		i.Expressions = []string{expression(i.Type, value)}
	case 6:
		i.Handle = netlink.BigUint(value)
	}
}

func readFlowtable(i *Item, kind uint16, value []byte) {
	switch kind {
	case 1:
		i.Table = netlink.String(value)
	case 2:
		i.Name = netlink.String(value)
	case 3:
		i.Hook = hook(value)
	case 5:
		i.Handle = netlink.BigUint(value)
	case 7:
		i.Flags = number(value)
	}
}

// hook reads NFTA_HOOK_…; a flowtable's has its devices one number earlier.
func hook(b []byte) *Hook {
	h := new(Hook)
	for kind, value := range netlink.Attributes(b) {
		switch kind {
		case 1:
			h.Number = number(value)
		case 2:
			h.Priority = int32(number(value))
		case 3, 4:
			if name, ok := plain(value); ok && kind == 3 {
				h.Devices = append(h.Devices, name)
				continue
			}
			for kind, value := range netlink.Attributes(value) {
				if kind == 1 && len(h.Devices) < maxList {
					h.Devices = append(h.Devices, netlink.String(value))
				}
			}
		}
	}
	return h
}

// plain tells whether b is text rather than attributes: a chain's one device,
// whose name is no longer than 15 bytes and holds no control characters.
func plain(b []byte) (string, bool) {
	s := netlink.String(b)
	for _, octet := range []byte(s) {
		if octet < ' ' {
			return "", false
		}
	}
	return s, s != "" && len(s) < 16
}

// elements lists those of one set.
func elements(ctx context.Context, c *netlink.Conn, set *Item, do func(*Item) error, odd func(error)) error {
	const ask, answer = 13, 12
	text := func(s string) []byte { return append([]byte(s), 0) }
	which := netlink.Append(netlink.Append(nil, 1, text(set.Table)), 2, text(set.Name))
	return dump(ctx, c, nfTables, ask, answer, set.Family, which, ParseElements, func(all *[]Item) error {
		for i := range *all {
			if err := do(&(*all)[i]); err != nil {
				return err
			}
		}
		return nil
	}, odd)
}

// ParseElements reads the elements of a set that one message holds.
func ParseElements(family uint8, b []byte) (*[]Item, error) {
	table, set := netlink.String(find(b, 1)), netlink.String(find(b, 2))
	if table == "" || set == "" {
		return nil, errors.New("cannot read elements of nf_tables: they name no set")
	}
	var all []Item
	for _, value := range netlink.Attributes(find(b, 3)) {
		if len(all) == maxList {
			break
		}
		i := Item{Kind: "element", Family: family, Table: table, Name: set}
		i.element(value)
		all = append(all, i)
	}
	return &all, nil
}

func (i *Item) element(b []byte) {
	for kind, value := range netlink.Attributes(b) {
		switch kind {
		case 1:
			i.Key = append([]byte(nil), find(value, 1)...)
		case 2:
			i.Data = data(value)
		case 3:
			i.Flags = number(value)
		case 4:
			i.Timeout = netlink.BigUint(value)
		case 6:
			i.Comment = comment(value)
		case 7:
			i.Expressions = []string{named(value)}
		case 9:
			i.Data = netlink.String(value)
		case 10:
			i.KeyEnd = append([]byte(nil), find(value, 1)...)
		case 11:
			i.Expressions = expressions(value)
		}
	}
}

func number(b []byte) uint32 { return uint32(netlink.BigUint(b)) }

// comment reads the user data that nft(8) leaves with a thing: type, length,
// value; a comment is of type 0 and ends with a NUL.
func comment(b []byte) string {
	for len(b) >= 2 && int(b[1]) <= len(b)-2 {
		if b[0] == 0 {
			return netlink.String(b[2 : 2+int(b[1])])
		}
		b = b[2+int(b[1]):]
	}
	return ""
}

func hexText(b []byte) string { return hex.EncodeToString(b) }
