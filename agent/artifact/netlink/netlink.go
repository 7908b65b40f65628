// Package netlink asks the kernel for a list, in any network namespace, and
// hands over one message at a time.
//
// A whole list is never in memory: a host with 100,000 sockets answers with
// 40 MB. That, and the namespace of each socket, is why this is not a library
// that collects a reply first.
//
// Sources: linux/net/netlink/af_netlink.c, linux/uapi/linux/netlink.h, netlink(7).
package netlink

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a conversation.
const (
	maxMessage = 64 << 10 // bytes that are received at once; the kernel's lists come in parts of 32 KiB
	patience   = 10 * time.Second
)

// ErrChanged says that the list changed while it was read, so that an element
// may be missing or told twice.
var ErrChanged = errors.New("the list changed while it was read")

// Conn is a netlink socket. One goroutine at a time may use it.
type Conn struct {
	fd  int
	seq uint32
	buf []byte
}

// Dial opens a socket of a netlink protocol, NETLINK_…, in the network
// namespace that ns is an open file of, or in the caller's own where ns is nil.
// To enter another takes CAP_SYS_ADMIN.
func Dial(protocol int, ns *os.File) (*Conn, error) {
	c := &Conn{fd: -1, buf: make([]byte, maxMessage)}
	open := func() (err error) {
		c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		return err
	}
	var err error
	if ns == nil {
		err = open()
	} else {
		err = within(ns, open)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open netlink %d: %w", protocol, err)
	}
	limit := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		c.Close()
		return nil, fmt.Errorf("cannot set the patience of netlink %d: %w", protocol, err)
	}
	return c, nil
}

// within runs do, which must not take long, on a thread that is in the network
// namespace ns. The thread ends with it and is never given back, as Go would
// run other code there. The first thread cannot end, and its namespace is the
// one that /proc shows for the whole process: it is not used, but held until
// another has done the work.
func within(ns *os.File, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			done <- within(ns, do)
			return
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("cannot enter network namespace %s: %w", ns.Name(), err)
			return
		}
		done <- do()
	}()
	return <-done
}

// Close ends the conversation.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Message is one of the kernel's. Its Data is valid until the function that it
// is given to returns.
type Message struct {
	Type uint16
	Data []byte // what follows the header
}

// Dump asks for a list by a request of some type, and gives each message to
// do. It ends with do's error, ctx's, the kernel's (a unix.Errno) or, after the
// last message, with ErrChanged. The Conn can be used again only where it ends
// with nil, ErrChanged or the kernel's error.
func (c *Conn) Dump(ctx context.Context, kind uint16, request []byte, do func(Message) error) error {
	c.seq++
	ask := Header(kind, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, c.seq, request)
	if err := unix.Sendto(c.fd, ask, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("cannot ask the kernel: %w", err)
	}
	var changed error
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		part, err := c.receive()
		if err != nil {
			return fmt.Errorf("cannot receive the kernel's answer: %w", err)
		}
		done, err := each(part, c.seq, &changed, do)
		if err != nil {
			return err
		}
		if done {
			return changed
		}
	}
}

// receive gives the next part that the kernel itself sent: others can send to
// a netlink socket too.
func (c *Conn) receive() ([]byte, error) {
	for {
		n, _, flags, from, err := unix.Recvmsg(c.fd, c.buf, nil, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return nil, fmt.Errorf("none came within %v: %w", patience, err)
		case err != nil:
			return nil, err
		}
		if peer, ok := from.(*unix.SockaddrNetlink); !ok || peer.Pid != 0 {
			continue
		}
		if flags&unix.MSG_TRUNC != 0 {
			return nil, fmt.Errorf("a message has more than %d bytes", maxMessage)
		}
		return c.buf[:n], nil
	}
}

// each gives the messages of one part to do, and tells whether the list ends.
func each(part []byte, seq uint32, changed *error, do func(Message) error) (done bool, err error) {
	for len(part) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(part))
		if size < unix.SizeofNlMsghdr || size > len(part) {
			return false, fmt.Errorf("cannot read the kernel's answer: a message of %d bytes in %d", size, len(part))
		}
		kind, flags := binary.NativeEndian.Uint16(part[4:]), binary.NativeEndian.Uint16(part[6:])
		ours := binary.NativeEndian.Uint32(part[8:]) == seq
		data := part[unix.SizeofNlMsghdr:size]
		part = part[min(align(size), len(part)):]
		if !ours {
			continue
		}
		if flags&unix.NLM_F_DUMP_INTR != 0 {
			*changed = ErrChanged
		}
		switch kind {
		case unix.NLMSG_NOOP:
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, refusal(data)
		default:
			if err := do(Message{kind, data}); err != nil {
				return false, err
			}
		}
	}
	return false, nil
}

// refusal reads the kernel's error, a negative number, at the start of data.
func refusal(data []byte) error {
	if len(data) < 4 {
		return nil
	}
	if code := int32(binary.NativeEndian.Uint32(data)); code < 0 {
		return unix.Errno(-code)
	}
	return nil
}

// Header puts a message's header in front of its data.
func Header(kind, flags uint16, seq uint32, data []byte) []byte {
	b := make([]byte, 0, unix.SizeofNlMsghdr+len(data))
	b = binary.NativeEndian.AppendUint32(b, uint32(unix.SizeofNlMsghdr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	return append(b, data...)
}

// align rounds up to NLMSG_ALIGNTO, which is NLA_ALIGNTO too.
func align(n int) int { return (n + 3) &^ 3 }

// Attributes gives the attributes that b holds, by type, without the bits
// NLA_F_NESTED and NLA_F_NET_BYTEORDER. It ends at the first that does not fit.
func Attributes(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			size := int(binary.NativeEndian.Uint16(b))
			if size < 4 || size > len(b) {
				return
			}
			kind := binary.NativeEndian.Uint16(b[2:]) & 0x3fff
			if !yield(kind, b[4:size:size]) {
				return
			}
			b = b[min(align(size), len(b)):]
		}
	}
}

// Append adds an attribute to b, whose length is a multiple of 4.
func Append(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, align(len(value))-len(value))...)
}

// Uint reads a number of 1, 2, 4 or 8 bytes in this machine's order. Any other
// length is 0.
func Uint(b []byte) uint64 {
	switch len(b) {
	case 1:
		return uint64(b[0])
	case 2:
		return uint64(binary.NativeEndian.Uint16(b))
	case 4:
		return uint64(binary.NativeEndian.Uint32(b))
	case 8:
		return binary.NativeEndian.Uint64(b)
	}
	return 0
}

// BigUint reads a number of 1, 2, 4 or 8 bytes in network order.
func BigUint(b []byte) uint64 {
	if len(b) > 8 {
		return 0
	}
	var n uint64
	for _, octet := range b {
		n = n<<8 | uint64(octet)
	}
	return n
}

// String reads text that a NUL may end.
func String(b []byte) string {
	for i, octet := range b {
		if octet == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
