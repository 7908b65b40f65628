package netlink

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// conversation is a part as the kernel sends it: two elements, one of another
// conversation between them, and the end.
func conversation(flags uint16) []byte {
	var part []byte
	for _, m := range []struct {
		kind uint16
		seq  uint32
		data string
	}{{20, 7, "one\x00"}, {20, 6, "not ours"}, {20, 7, "two\x00"}, {unix.NLMSG_DONE, 7, "\x00\x00\x00\x00"}} {
		part = append(part, Header(m.kind, flags, m.seq, []byte(m.data))...)
	}
	return part
}

func TestEachMessage(t *testing.T) {
	for _, flags := range []uint16{0, unix.NLM_F_DUMP_INTR} {
		var got []string
		var changed error
		done, err := each(conversation(flags), 7, &changed, func(m Message) error {
			got = append(got, String(m.Data))
			return nil
		})
		if !done || err != nil || !slices.Equal(got, []string{"one", "two"}) || (changed != nil) != (flags != 0) {
			t.Errorf("flags %#x: %q, done %t, %v, %v", flags, got, done, err, changed)
		}
	}
}

func TestEachTellsOfRefusals(t *testing.T) {
	var changed error
	refused := Header(unix.NLMSG_ERROR, 0, 1, []byte{0xfe, 0xff, 0xff, 0xff})
	if done, err := each(refused, 1, &changed, nil); !done || !errors.Is(err, unix.ENOENT) {
		t.Errorf("done %t, %v", done, err)
	}
	longer := Header(20, 0, 1, nil)
	longer[0] = 200
	if _, err := each(longer, 1, &changed, nil); err == nil {
		t.Error("a message that is longer than its part was taken")
	}
}

func TestAttributes(t *testing.T) {
	b := Append(Append(nil, 3|1<<15, []byte("x")), 4, []byte{1, 0, 0, 0})
	b = append(b, 9, 0, 1, 0) // claims nine bytes and has four
	got := map[uint16][]byte{}
	for kind, value := range Attributes(b) {
		got[kind] = value
	}
	if len(got) != 2 || string(got[3]) != "x" || !bytes.Equal(got[4], []byte{1, 0, 0, 0}) || BigUint(got[4]) != 1<<24 {
		t.Errorf("got %v", got)
	}
}

// The list of interfaces, of this namespace and of the same one by its file.
func TestDump(t *testing.T) {
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for _, ns := range []*os.File{nil, own} {
		c, err := Dial(unix.NETLINK_ROUTE, ns)
		if errors.Is(err, unix.EPERM) {
			t.Log("to enter a namespace needs CAP_SYS_ADMIN: not tried")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for range 2 { // a Conn can be used again
			count := 0
			err = c.Dump(t.Context(), unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(m Message) error {
				count++
				return nil
			})
			if err != nil && !errors.Is(err, ErrChanged) || count == 0 {
				t.Errorf("%d interfaces, %v", count, err)
			}
		}
	}
}

func FuzzEach(f *testing.F) {
	f.Add(conversation(0))
	f.Add(Append(nil, 1, []byte("value")))
	f.Fuzz(func(t *testing.T, part []byte) {
		var changed error
		total := 0
		each(part, 7, &changed, func(m Message) error {
			for _, value := range Attributes(m.Data) {
				total += len(value)
			}
			return nil
		})
		if total > len(part) {
			t.Errorf("%d bytes of attributes in %d", total, len(part))
		}
	})
}
