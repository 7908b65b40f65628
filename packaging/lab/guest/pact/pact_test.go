package pact_test

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/packaging/lab/guest/pact"
)

func TestMarksDependOnSeedAndPage(t *testing.T) {
	one, two := bytes.Repeat([]byte{1}, pact.SeedSize), bytes.Repeat([]byte{2}, pact.SeedSize)
	if pact.Marker(one) == pact.Marker(two) {
		t.Error("two seeds gave one marker")
	}
	if got := len(pact.Marker(one)); got != 48 {
		t.Errorf("marker has %d characters, want 48", got)
	}
	seen := map[string]string{}
	for name, seed := range map[string][]byte{"one": one, "two": two} {
		for n := range pact.MarkerPages {
			page := make([]byte, pact.PageSize)
			pact.FillPage(page, seed, n)
			for at := 0; at < len(page); at += 32 {
				block := string(page[at : at+32])
				if was, ok := seen[block]; ok {
					t.Fatalf("page %d of seed %s repeats a block of %s", n, name, was)
				}
				seen[block] = name
			}
		}
	}
}

func TestWriteThenDecode(t *testing.T) {
	var line bytes.Buffer
	sent := pact.Report{Kind: pact.KindReply, ID: 7, Text: "two\nlines"}
	if err := pact.Write(&line, sent); err != nil {
		t.Fatal(err)
	}
	lines := pact.Lines(&line)
	if !lines.Scan() {
		t.Fatal("no line")
	}
	var got pact.Report
	if err := pact.Decode(lines.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, sent) {
		t.Errorf("got %+v, want %+v", got, sent)
	}
	if lines.Scan() {
		t.Errorf("a second line %q", lines.Text())
	}
}

func TestWriteRefusesALongLine(t *testing.T) {
	var line bytes.Buffer
	err := pact.Write(&line, pact.Report{Text: strings.Repeat("x", 70<<10)})
	if !errors.Is(err, pact.ErrLongLine) {
		t.Errorf("got %v, want ErrLongLine", err)
	}
	if line.Len() != 0 {
		t.Errorf("%d bytes were sent all the same", line.Len())
	}
}

// TestAPieceFitsALine: the largest piece of output, of bytes that JSON would
// escape, can be sent.
func TestAPieceFitsALine(t *testing.T) {
	var line bytes.Buffer
	piece := pact.Report{Kind: pact.KindOutput, ID: 1 << 30, Data: bytes.Repeat([]byte{0xff}, pact.MaxPiece)}
	if err := pact.Write(&line, piece); err != nil {
		t.Fatal(err)
	}
	lines := pact.Lines(&line)
	if !lines.Scan() {
		t.Fatal(lines.Err())
	}
	var got pact.Report
	if err := pact.Decode(lines.Bytes(), &got); err != nil || !bytes.Equal(got.Data, piece.Data) {
		t.Errorf("%d bytes came, %v", len(got.Data), err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, line := range map[string]string{
		"empty":              "",
		"cut":                `{"kind":"fac`,
		"unknown field":      `{"kind":"facts","colour":"red"}`,
		"two objects":        `{"kind":"facts"}{"kind":"facts"}`,
		"wrong type":         `{"kind":4}`,
		"bytes in front":     `[ 1.0] {"kind":"facts"}`,
		"not even an object": `"facts"`,
	} {
		t.Run(name, func(t *testing.T) {
			var r pact.Report
			if err := pact.Decode([]byte(line), &r); err == nil {
				t.Errorf("accepted %q as %+v", line, r)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"kind":"facts","facts":{"release":"6.1.0"}}`))
	f.Add([]byte(`{"kind":"reply","id":3,"error":"no"}`))
	f.Add([]byte("{"))
	f.Fuzz(func(t *testing.T, line []byte) {
		var r pact.Report
		if pact.Decode(line, &r) != nil {
			return
		}
		var again bytes.Buffer
		if err := pact.Write(&again, r); err != nil && !errors.Is(err, pact.ErrLongLine) {
			t.Fatalf("read but cannot be written: %v", err)
		}
	})
}
