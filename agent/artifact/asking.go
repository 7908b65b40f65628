package artifact

import (
	"errors"
	"fmt"

	"github.com/quicklime-ir/quicklime/agent/artifact/netlink"
)

// maxAnswer bounds the rows that are made of one list of the kernel's.
const maxAnswer = 1 << 20

// answer is a list of the kernel's that becomes rows.
type answer struct {
	s     *sheet
	shown string // the list, as the record names it
	rows  int
	stop  error // why no row can be written any more
}

func (a *answer) put(row any) error {
	if a.rows++; a.rows > maxAnswer {
		if a.rows == maxAnswer+1 {
			a.s.note(a.shown, NoteCut, fmt.Sprintf("more than %d", maxAnswer))
		}
		return a.s.ctx.Err()
	}
	a.stop = a.s.put(row)
	return a.stop
}

func (a *answer) odd(err error) { a.s.note(a.shown, NoteOdd, err.Error()) }

// end judges how a list ended. It reports whether what was told is all there is
// to have, so that another source would tell it twice; it fails only when the
// table's place or context does.
func (a *answer) end(err error) (told bool, _ error) {
	switch {
	case a.stop != nil || a.s.ctx.Err() != nil:
		return true, errors.Join(a.stop, a.s.ctx.Err())
	case errors.Is(err, netlink.ErrChanged):
		a.s.note(a.shown, NoteChanged, err.Error())
	case err != nil:
		a.s.failed(a.shown, err)
		return a.rows > 0, nil
	}
	return true, nil
}

// question makes rows of a list of the kernel's, asked in the namespace that c
// is of.
type question func(a *answer, c *netlink.Conn, ns namespace) error

// eachNetSpace asks a question in every network namespace. Where it cannot be
// asked, as it is nil or the root another host's, otherwise does what it can; nil
// is nothing.
func (h *Host) eachNetSpace(s *sheet, protocol int, what string, ask question, otherwise func(namespace) error) error {
	spaces, err := h.netSpaces(s)
	if err != nil {
		return err
	}
	if !h.running() && otherwise == nil {
		s.note(what, NoteNone, "asked of the running kernel alone, and this is another root")
	}
	for _, ns := range spaces {
		told := false
		if h.running() && ask != nil {
			a := &answer{s: s, shown: fmt.Sprintf("%s of network namespace %d", what, ns.id)}
			if told, err = a.ask(h, protocol, ask, ns); err != nil {
				return err
			}
		}
		if told || otherwise == nil {
			continue
		}
		if err := otherwise(ns); err != nil {
			return err
		}
	}
	return s.ctx.Err()
}

func (a *answer) ask(h *Host, protocol int, ask question, ns namespace) (told bool, err error) {
	c, err := h.dial(ns, protocol)
	if err != nil {
		a.s.failed(a.shown, err)
		return false, nil
	}
	defer c.Close()
	return a.end(ask(a, c, ns))
}
