// Package netfilter lists what the packet filter of a network namespace has:
// the connections that it tracks and the rules of nf_tables, as the kernel tells
// them, so that no program of the host is needed for either.
//
// Sources: linux/uapi/linux/netfilter/{nfnetlink,nfnetlink_conntrack,nf_tables}.h.
package netfilter

import (
	"context"
	"fmt"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// Subsystems of nfnetlink.
const (
	conntrack = 1
	nfTables  = 10
)

const headSize = 4 // struct nfgenmsg: family, version, resource

// dump asks a subsystem for a list of a family, of which 0 is all, and parses
// what comes as a family and attributes. A message that cannot be read goes to
// odd.
func dump[R any](ctx context.Context, c *netlink.Conn, subsystem, ask, answer uint16, family uint8, attributes []byte, parse func(family uint8, b []byte) (*R, error), do func(*R) error, odd func(error)) error {
	request := append([]byte{family, 0, 0, 0}, attributes...)
	return c.Dump(ctx, subsystem<<8|ask, request, func(m netlink.Message) error {
		if m.Type != subsystem<<8|answer {
			return nil
		}
		if len(m.Data) < headSize {
			odd(fmt.Errorf("cannot read an answer of netfilter: %d bytes, want %d", len(m.Data), headSize))
			return nil
		}
		row, err := parse(m.Data[0], m.Data[headSize:])
		if err != nil {
			odd(err)
			return nil
		}
		return do(row)
	})
}

// find gives the first attribute of a kind.
func find(b []byte, kind uint16) []byte {
	for k, value := range netlink.Attributes(b) {
		if k == kind {
			return value
		}
	}
	return nil
}
