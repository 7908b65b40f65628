package seekable_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	foreign "github.com/SaveTheRbtz/zstd-seekable-format-go/pkg"
	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/proto/seekable"
)

// object makes three frames, one of them followed by a skippable frame as
// padding, and their table.
func object(t testing.TB) (object, raw []byte, frames []seekable.Frame) {
	t.Helper()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	padding := []byte{0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 0, 0, 0}
	for i, text := range []string{"first frame ", "the second, padded ", "the third"} {
		begin := len(object)
		object = encoder.EncodeAll([]byte(text), object)
		if i == 1 {
			object = append(object, padding...)
		}
		raw = append(raw, text...)
		frames = append(frames, seekable.Frame{Stored: uint32(len(object) - begin), Raw: uint32(len(text))})
	}
	if object, err = seekable.AppendTable(object, frames); err != nil {
		t.Fatal(err)
	}
	return object, raw, frames
}

func TestTable(t *testing.T) {
	object, raw, frames := object(t)
	got, err := seekable.ReadTable(bytes.NewReader(object), int64(len(object)))
	if err != nil || !slices.Equal(got, frames) {
		t.Errorf("the table reads as %v, %v; want %v", got, err, frames)
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	all, err := decoder.DecodeAll(object, nil)
	if err != nil || !bytes.Equal(all, raw) {
		t.Errorf("a plain decoder reads %q, %v; want %q", all, err, raw)
	}
}

// TestAForeignReader seeks with a library that knows nothing of ours.
func TestAForeignReader(t *testing.T) {
	object, raw, _ := object(t)
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	reader, err := foreign.NewReader(bytes.NewReader(object), decoder)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for at := range raw {
		got := make([]byte, len(raw)-at)
		if n, err := reader.ReadAt(got, int64(at)); n != len(got) || !bytes.Equal(got, raw[at:]) {
			t.Fatalf("at %d it reads %q, %v; want %q", at, got[:n], err, raw[at:])
		}
	}
}

func TestWhatIsNoTable(t *testing.T) {
	whole, _, _ := object(t)
	change := func(fromEnd int) []byte {
		b := slices.Clone(whole)
		b[len(b)-fromEnd] ^= 0x10
		return b
	}
	tests := []struct {
		name   string
		object []byte
	}{
		{"nothing", nil},
		{"no magic", change(1)},
		{"a descriptor of checksums", change(5)},
		{"more frames than there are", change(9)},
		{"no skippable frame", change(seekable.Size(3))},
		{"a frame of another length", change(seekable.Size(3) - 8)},
		{"an object that is cut at its head", whole[1:]},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			frames, err := seekable.ReadTable(bytes.NewReader(tt.object), int64(len(tt.object)))
			if !errors.Is(err, seekable.ErrFormat) {
				t.Errorf("it reads as %v, %v; want %v", frames, err, seekable.ErrFormat)
			}
		})
	}
	if _, err := seekable.AppendTable(nil, make([]seekable.Frame, seekable.MaxFrames+1)); err == nil {
		t.Error("a table of more than MaxFrames was made")
	}
}

// FuzzReadTable: no bytes make it fail but by its error, and what it reads is
// what AppendTable writes.
func FuzzReadTable(f *testing.F) {
	whole, _, _ := object(f)
	f.Add(whole)
	f.Add(whole[len(whole)-seekable.Size(3):])
	f.Fuzz(func(t *testing.T, b []byte) {
		frames, err := seekable.ReadTable(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		again, err := seekable.AppendTable(nil, frames)
		if err != nil || !bytes.HasSuffix(b, again) {
			t.Errorf("%v writes as % x, %v; it was read from % x", frames, again, err, b)
		}
	})
}
