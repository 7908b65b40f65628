// Package timeline makes the events of a case, a line of JSON each, as
// Timesketch imports them: message, datetime, timestamp and timestamp_desc,
// and the fields of the row that the event is of.
//
// The events are those of every table in JSONL, of the bodyfile and of the
// case's journal. They come in the order of the evidence, not of time: an
// importer sorts them. All of it is what a hostile host said, so that each
// text is escaped and bounded, and a row that cannot be read is counted and
// passed over.
package timeline

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// maxRow bounds a line of evidence, in bytes; one that is longer is passed
// over.
const maxRow = 16 << 20

// Result is what was written, and what could not be.
type Result struct {
	Events int64
	Bad    []Bad // items with rows that could not be read
	Cut    []string
}

// Bad is an item whose rows could not all be read.
type Bad struct {
	Key  string
	Rows int64
	Line int64  // of the first of them, from 1
	Why  string // of the first of them
}

// Lacks says what is not in the timeline; "" where nothing is missing.
func (r Result) Lacks() string {
	var lacks []string
	for _, b := range r.Bad {
		lacks = append(lacks, fmt.Sprintf("%d rows of %s could not be read, the first is line %d: %s", b.Rows, evidence.Plain(b.Key), b.Line, b.Why))
	}
	for _, key := range r.Cut {
		lacks = append(lacks, evidence.Plain(key)+" was not stored whole")
	}
	return strings.Join(lacks, "; ")
}

// Write writes the events of a case. The entries are those of its journal. An
// error means that the timeline is not whole.
func Write(ctx context.Context, objects evidence.Objects, m evidence.Manifest, entries []custody.Entry, w io.Writer) (Result, error) {
	out := bufio.NewWriterSize(w, 256<<10)
	t := &timeline{writer: writer{out: out, caseID: m.Case, instance: m.Instance.ID}}
	if m.Agent != nil {
		t.host = m.Agent.Hostname
	}
	for _, e := range entries {
		if err := t.entry(e); err != nil {
			return t.result(), err
		}
	}
	for _, item := range m.Items {
		if row := t.reader(item); row != nil {
			if err := t.item(ctx, objects, item, row); err != nil {
				return t.result(), err
			}
		}
	}
	if err := out.Flush(); err != nil {
		return t.result(), fmt.Errorf("cannot write the timeline: %w", err)
	}
	return t.result(), nil
}

// timeline is one that is being written.
type timeline struct {
	writer
	bad []Bad
	cut []string
}

func (t *timeline) result() Result { return Result{Events: t.events, Bad: t.bad, Cut: t.cut} }

// errBad says that a row cannot be read.
var errBad = errors.New("it cannot be read")

// bad makes an error of a row; it must hold no text of the host.
func bad(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errBad, fmt.Sprintf(format, args...))
}

// reader gives what makes events of an item's lines; nil where it has none.
func (t *timeline) reader(item evidence.Item) func(line []byte) error {
	switch {
	case item.Format == evidence.JSONL && item.Name == "collection":
		return nil // what was tried is no event of the host
	case item.Format == evidence.JSONL:
		rules := rulesOf(item.Name)
		return func(line []byte) error { return t.row(item.Name, rules, line) }
	case item.Format == evidence.Text && item.Name == "bodyfile":
		return t.bodyLine
	}
	return nil
}

// item reads an item, line by line.
func (t *timeline) item(ctx context.Context, objects evidence.Objects, item evidence.Item, row func([]byte) error) error {
	cut := item.Status != evidence.Whole
	if cut {
		t.cut = append(t.cut, item.Key)
	}
	src, err := proof.NewReader(ctx, objects, item)
	if err != nil {
		return err
	}
	defer src.Close()
	problem := Bad{Key: item.Key}
	err = eachLine(src, cut, func(number int64, line []byte, err error) error {
		if err == nil {
			err = row(line)
		}
		if !errors.Is(err, errBad) {
			return err
		}
		if problem.Rows++; problem.Rows == 1 {
			problem.Line, problem.Why = number, err.Error()
		}
		return nil
	})
	if problem.Rows > 0 {
		t.bad = append(t.bad, problem)
	}
	if cut && errors.Is(err, io.ErrUnexpectedEOF) {
		return nil // a frame that was cut: that is told already
	}
	return err
}

// eachLine gives each line to do, without its end; one that is empty it passes
// over, one that is too long is errBad. A last line without an end is left out
// where the item is cut.
func eachLine(src io.Reader, cut bool, do func(number int64, line []byte, err error) error) error {
	in := bufio.NewReaderSize(src, 256<<10)
	var long []byte
	for number := int64(1); ; number++ {
		line, err := in.ReadSlice('\n')
		tooLong := false
		if errors.Is(err, bufio.ErrBufferFull) {
			long = append(long[:0], line...)
			for errors.Is(err, bufio.ErrBufferFull) {
				line, err = in.ReadSlice('\n')
				if tooLong = tooLong || len(long)+len(line) > maxRow; !tooLong {
					long = append(long, line...)
				}
			}
			line = long
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		if len(line) > 0 && (err == nil || !cut) {
			var wrong error
			if tooLong {
				wrong = bad("it has over %d bytes", maxRow)
			}
			if err := do(number, line, wrong); err != nil {
				return err
			}
		}
		if err != nil {
			return nil
		}
	}
}
