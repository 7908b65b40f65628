package custody_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.FixedZone("CET", 3600))

type event struct {
	Step   string          `json:"step"`
	Detail json.RawMessage `json:"detail,omitempty"`
}

// journal makes a journal of n entries.
func journal(t testing.TB, n int) (raws [][]byte, head evidence.JournalHead) {
	t.Helper()
	for i := range n {
		raw, next, err := custody.Next(head, noon.Add(time.Duration(i)*time.Second), event{Step: fmt.Sprintf("step <%d> & more", i+1)})
		if err != nil {
			t.Fatal(err)
		}
		raws, head = append(raws, raw), next
	}
	return raws, head
}

func TestJournalEntryIsWrittenOut(t *testing.T) {
	raws, head := journal(t, 2)
	want := `{"seq":1,"time":"2026-11-23T11:00:00.123456789Z","prev":"` + strings.Repeat("0", 64) +
		`","event":{"step":"step \u003c1\u003e \u0026 more"}}`
	if string(raws[0]) != want {
		t.Errorf("entry is %s\nwant     %s", raws[0], want)
	}
	if got := (evidence.JournalHead{Entries: 2, SHA256: custody.Hash(raws[1])}); head != got {
		t.Errorf("head is %v, want %v", head, got)
	}
	if !strings.Contains(string(raws[1]), custody.Hash(raws[0]).String()) {
		t.Error("the second entry does not name the first")
	}
}

// TestJournalEntryKeepsInsideJSON is what the docket does until the bucket
// has an entry.
func TestJournalEntryKeepsInsideJSON(t *testing.T) {
	hostile := json.RawMessage("{ \"title\" : \"<script>\u2028 \\u00e9 \xff \\/ 1e5\",\n\t\"n\": 1.50 }")
	raw, _, err := custody.Next(evidence.JournalHead{}, noon, event{Step: "open", Detail: hostile})
	if err != nil {
		t.Fatal(err)
	}
	type page struct{ Unsent []json.RawMessage }
	p := page{[]json.RawMessage{raw}}
	for range 2 {
		text, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		p = page{}
		if err := json.Unmarshal(text, &p); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(p.Unsent[0], raw) {
		t.Errorf("kept as %q\nwas     %q", p.Unsent[0], raw)
	}
	if _, err := custody.VerifyChain([][]byte{p.Unsent[0]}); err != nil {
		t.Error(err)
	}
}

func TestNextRefuses(t *testing.T) {
	for name, event := range map[string]any{
		"what has no JSON": make(chan int),
		"broken JSON":      json.RawMessage("{"),
		"too large":        strings.Repeat("x", 5<<20),
	} {
		if _, head, err := custody.Next(evidence.JournalHead{}, noon, event); err == nil || head.Entries != 0 {
			t.Errorf("%s: %v, %v", name, head, err)
		}
	}
	if _, _, err := custody.Next(evidence.JournalHead{}, time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC), 1); err == nil {
		t.Error("a time that has no RFC 3339 form is written")
	}
}

func TestChain(t *testing.T) {
	whole, head := journal(t, 6)
	edit := func(n int, old, new string) [][]byte {
		raws := append([][]byte{}, whole...)
		raws[n-1] = []byte(strings.Replace(string(raws[n-1]), old, new, 1))
		return raws
	}
	pick := func(numbers ...int) (raws [][]byte) {
		for _, n := range numbers {
			raws = append(raws, whole[n-1])
		}
		return raws
	}
	tests := map[string]struct {
		raws [][]byte
		says string // "" if it holds
	}{
		"whole":                   {whole, ""},
		"empty":                   {nil, ""},
		"its end cut off":         {whole[:4], ""}, // only a head shows it
		"first left out":          {pick(2, 3, 4), "entry 1 is missing: in its place is entry 2"},
		"one left out":            {pick(1, 2, 4, 5, 6), "entry 3 is missing: in its place is entry 4"},
		"two exchanged":           {pick(1, 3, 2, 4, 5, 6), "entry 2 is moved: it is in place 3, and entry 3 in its own"},
		"one doubled":             {pick(1, 2, 2, 3), "entry 2 is doubled: it is in places 2 and 3"},
		"event changed":           {edit(3, "step", "pest"), "entry 3 is changed: entry 4 was written after one"},
		"event of the first":      {edit(1, "1", "7"), "entry 1"},
		"time changed":            {edit(3, "11:00:02", "11:00:03"), "entry 3 is changed"},
		"event before the last":   {edit(5, "more", "less"), "entry 5 or 6 is changed"},
		"first follows something": {edit(1, `"prev":"0`, `"prev":"1`), "entry 1, which follows nothing, is changed"},
		"number changed":          {edit(3, `"seq":3`, `"seq":9`), "entry 3 is missing: in its place is entry 9"},
		"number below one":        {edit(1, `"seq":1`, `"seq":0`), "entry 1 is missing"},
		"field added":             {edit(2, `"prev"`, `"extra":1,"prev"`), "place 2 is changed: it is not spelled"},
		"field doubled":           {edit(2, `{"seq":2`, `{"seq":1,"seq":2`), "place 2 is changed: it is not spelled"},
		"field's case changed":    {edit(2, `"seq"`, `"SEQ"`), "place 2 is changed: it is not spelled"},
		"space added":             {edit(2, `:`, `: `), "place 2 is changed: it is not spelled"},
		"line end added":          {edit(2, `}}`, "}}\n"), "place 2 is changed: it is not spelled"},
		"time in another zone":    {edit(1, `11:00:00.123456789Z`, `12:00:00.123456789+01:00`), "place 1 is changed"},
		"hash in capitals":        {edit(2, custody.Hash(whole[0]).String(), strings.ToUpper(custody.Hash(whole[0]).String())), "place 2 is changed"},
		"hash too short":          {edit(1, `"prev":"00`, `"prev":"`), "place 1 is changed: it is no entry"},
		"no entry":                {append(pick(1, 2), []byte("hello")), "place 3 is changed: it is no entry"},
		"null":                    {[][]byte{[]byte("null")}, "place 1 is changed"},
		"too large":               {[][]byte{bytes.Repeat([]byte(" "), 5<<20)}, "want 4194304 at most"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := custody.VerifyChain(test.raws)
			if test.says == "" {
				if err != nil || got.Entries != len(test.raws) {
					t.Errorf("%v, %v", got, err)
				}
				return
			}
			if !errors.Is(err, custody.ErrBroken) || !strings.Contains(err.Error(), test.says) || got != (evidence.JournalHead{}) {
				t.Errorf("got  %v, %v\nwant %s", got, err, test.says)
			}
		})
	}
	if got, err := custody.VerifyChain(whole); err != nil || got != head {
		t.Errorf("head is %v (%v), want %v", got, err, head)
	}
}

// TestChainTellsEveryBit flips each bit of a journal. Only in the last entry
// can one go unseen, and the head tells that one.
func TestChainTellsEveryBit(t *testing.T) {
	raws, head := journal(t, 3)
	for n := range raws {
		for i := range raws[n] {
			for bit := range 8 {
				raws[n][i] ^= 1 << bit
				got, err := custody.VerifyChain(raws)
				raws[n][i] ^= 1 << bit
				if err == nil && (n != len(raws)-1 || got == head) {
					t.Fatalf("bit %d of byte %d of entry %d can be changed", bit, i, n+1)
				}
			}
		}
	}
}

func FuzzVerifyChain(f *testing.F) {
	raws, _ := journal(f, 3)
	f.Add(bytes.Join(raws, []byte("\n")))
	f.Add(bytes.Join(raws[1:], []byte("\n")))
	f.Add([]byte("null\n{}\n[]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		raws := bytes.Split(text, []byte("\n"))
		head, err := custody.VerifyChain(raws)
		if err != nil {
			if !errors.Is(err, custody.ErrBroken) || head != (evidence.JournalHead{}) {
				t.Fatalf("%v, %v", head, err)
			}
			return
		}
		// What verifies is what Next would have written.
		var at evidence.JournalHead
		for i, raw := range raws {
			var e custody.Entry
			if err := json.Unmarshal(raw, &e); err != nil {
				t.Fatal(err)
			}
			again, next, err := custody.Next(at, e.Time, e.Event)
			if err != nil || !bytes.Equal(again, raw) {
				t.Fatalf("entry %d is %q, would be written %q (%v)", i+1, raw, again, err)
			}
			at = next
		}
		if at != head {
			t.Fatalf("head is %v, want %v", head, at)
		}
	})
}
