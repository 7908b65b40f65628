package export

import (
	"errors"
	"fmt"
	"io"

	"github.com/quicklime-ir/quicklime/proto/lime"
)

// records turns a part's LiME records into output. What an agent stored may
// say anything: only records that go on where the one before ended, through
// the memory that the part must hold, are let through.
type records struct {
	out    *output
	format Format
	want   []lime.Range // that is left, neighbours joined; its first begins at the next byte
	record uint64       // bytes left of the record that has begun
	at     uint64       // of the next byte in the part's output, but for Padded
}

// walk reads records to the end of the part.
func (r *records) walk(src io.Reader) error {
	part := lime.NewReader(src)
	for {
		record, err := part.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if len(r.want) == 0 || record.Start != r.want[0].Start || record.End > r.want[0].End {
			return fmt.Errorf("record %v holds other memory than the part", record)
		}
		if err := r.begin(record); err != nil {
			return err
		}
		if err := r.copy(part); err != nil {
			return fmt.Errorf("record %v: %w", record, err)
		}
	}
	if len(r.want) > 0 {
		return fmt.Errorf("it ends before %v", r.want[0])
	}
	return nil
}

// begin begins a record.
func (r *records) begin(record lime.Range) error {
	r.record = record.Len()
	if r.format != LiME {
		return nil
	}
	header := lime.AppendHeader(make([]byte, 0, lime.HeaderSize), record)
	err := r.out.write(r.at, header)
	r.at += lime.HeaderSize
	return err
}

// copy writes the bytes of the record that has begun.
func (r *records) copy(src io.Reader) error {
	for r.record > 0 {
		room, err := r.out.room(r.place())
		if err != nil {
			return err
		}
		n, err := src.Read(room[:min(uint64(len(room)), r.record)])
		r.out.filled(n)
		r.advance(uint64(n))
		if err != nil {
			return err
		}
	}
	return nil
}

// place is where the next byte belongs.
func (r *records) place() uint64 {
	if r.format == Padded {
		return r.want[0].Start
	}
	return r.at
}

// advance says that n bytes of the record are written.
func (r *records) advance(n uint64) {
	r.at, r.record = r.at+n, r.record-n
	if n == r.want[0].Len() {
		r.want = r.want[1:]
		return
	}
	r.want[0].Start += n
}

// fill stands for what a faulty part does not have: zeros to the end of its
// memory, which raw forms have by themselves.
func (r *records) fill() error {
	if r.format != LiME {
		return nil
	}
	for len(r.want) > 0 {
		if r.record == 0 {
			if err := r.begin(r.want[0]); err != nil {
				return err
			}
		}
		n := r.record
		if err := r.out.zeros(r.at, n); err != nil {
			return err
		}
		r.advance(n)
	}
	return nil
}
