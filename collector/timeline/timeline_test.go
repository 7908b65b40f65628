package timeline

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/quicklime-ir/quicklime/collector/casefile"
	"github.com/quicklime-ir/quicklime/collector/custody"
	"github.com/quicklime-ir/quicklime/collector/proof"
	"github.com/quicklime-ir/quicklime/proto/evidence"
)

// bucket holds objects by their keys.
type bucket map[string][]byte

func (b bucket) Open(_ context.Context, key string) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(b[key])), nil
}

func (b bucket) OpenRange(_ context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(b[key]), offset, length)), nil
}

// store puts an item into a bucket, in parts of some 100 bytes before
// compression.
func (b bucket) store(t testing.TB, name string, format evidence.Format, text string) evidence.Item {
	t.Helper()
	item := evidence.Item{Kind: evidence.Live, Name: name, Format: format, Compression: evidence.Zstd, Key: "cases/c1/i-1/live/" + name, Status: evidence.Whole}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	for n := int32(1); len(text) > 0; n++ {
		raw := text[:min(len(text), max(100, len(text)/100))]
		text = text[len(raw):]
		stored := encoder.EncodeAll([]byte(raw), nil)
		item.Parts = append(item.Parts, evidence.Part{Number: n, Size: uint64(len(stored)), RawSize: uint64(len(raw)), SHA256: sha256.Sum256(stored)})
		b[item.Key] = append(b[item.Key], stored...)
	}
	return item
}

// eventsOf gives the events of one item.
func eventsOf(t testing.TB, name string, format evidence.Format, text string) ([]map[string]any, Result) {
	t.Helper()
	b := bucket{}
	m := evidence.Manifest{Case: "c1", Instance: evidence.Instance{ID: "i-1"}, Items: []evidence.Item{b.store(t, name, format, text)}}
	var out bytes.Buffer
	r, err := Write(t.Context(), b, m, nil, &out)
	if err != nil {
		t.Fatal(err)
	}
	return lines(t, out.Bytes()), r
}

func lines(t testing.TB, out []byte) (events []map[string]any) {
	t.Helper()
	in := bufio.NewScanner(bytes.NewReader(out))
	in.Buffer(nil, 8<<20)
	for in.Scan() {
		var e map[string]any
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			t.Fatalf("%v in %.200s", err, in.Bytes())
		}
		events = append(events, e)
	}
	return events
}

// TestRows: table, row, and for each event its time, what it is of, and its
// message.
func TestRows(t *testing.T) {
	tests := []struct {
		table, row string
		want       []string
	}{
		{"processes", `{"case":"c1","collected_at":"2026-11-26T04:00:00Z","pid":7,"ppid":1,"name":"sh","started":"2026-11-26T03:00:00.123456789Z","cmdline":["sh","-c","id"],"exe":"/bin/sh"}`,
			[]string{"2026-11-26T03:00:00.123456+00:00|Process Started|process 7 of 1 started: sh /bin/sh sh -c id"}},
		{"containers", `{"name":"web","created":"2026-01-01T00:00:00+02:00","started":"2026-01-02T00:00:00Z"}`,
			[]string{"2025-12-31T22:00:00.000000+00:00|Container Created|container web  of :", "2026-01-02T00:00:00.000000+00:00|Container Started|container web  of :"}},
		{"logins", `{"file":"btmp","user":"{host}","time":"2026-01-01T00:00:00Z"}`, // a name in braces is only text
			[]string{"2026-01-01T00:00:00.000000+00:00|Login Record|btmp:  {host} on  from"}},
		{"processes", `{"pid":1,"started":"0001-01-01T00:00:00Z"}`, nil}, // not known
		{"modules", `{"name":"2026-01-01T00:00:00Z"}`, nil},              // text that looks like a time
		{"anything_new", `{"seen_at":"2026-01-01T00:00:00Z","collected_at":"2026-11-26T04:00:00Z","who":"x"}`,
			[]string{"2026-01-01T00:00:00.000000+00:00|anything_new seen_at|anything_new: seen_at=2026-01-01T00:00:00Z who=x"}},
	}
	for _, tt := range tests {
		events, r := eventsOf(t, tt.table, evidence.JSONL, tt.row+"\n")
		var got []string
		for _, e := range events {
			got = append(got, fmt.Sprintf("%s|%s|%s", e["datetime"], e["timestamp_desc"], e["message"]))
		}
		if strings.Join(got, "\n") != strings.Join(tt.want, "\n") || r.Lacks() != "" {
			t.Errorf("%s: got %q, want %q; lacks %q", tt.table, got, tt.want, r.Lacks())
		}
	}
}

// TestFields: a row's own fields are text, and never those of the event.
func TestFields(t *testing.T) {
	events, _ := eventsOf(t, "journal", evidence.JSONL,
		`{"time":"2026-01-01T00:00:00.000001Z","message":"hello","pid":"7","unlinked":true,"none":null,"fields":{"A":["b"]},"BAD NAME":"x","timestamp":"1"}`+"\n")
	want := map[string]any{"message": "[7]: hello", "datetime": "2026-01-01T00:00:00.000001+00:00", "timestamp": 1767225600000001.0, "timestamp_desc": "Journal Entry",
		"data_type": "quicklime:journal", "source_short": "QL", "case": "c1", "instance": "i-1", "time": "2026-01-01T00:00:00.000001Z", "row_message": "hello", "pid": "7",
		"unlinked": "true", "fields": `{"A":["b"]}`, "row_timestamp": "1"}
	if len(events) != 1 || fmt.Sprint(events[0]) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", events, want)
	}
}

// TestBodyfile: times that are equal are one event, those that are 0 none.
func TestBodyfile(t *testing.T) {
	events, r := eventsOf(t, "bodyfile", evidence.Text, `0|/tmp/a\|b\x0a\\c -> /x|12|l/lrwxrwxrwx|0|1000|5|1767225600.000000001|1767225600.000000001|1767225601|0`+"\n"+
		"0|/short|1\n"+
		"0|/odd|12|r/rrw-r--r--|0|0|5|soon|1|1|1\n"+
		`0|/old|1|r/r|0|0|1|-1.5|9999999999999999|0|0`+"\n")
	var got []string
	for _, e := range events {
		got = append(got, fmt.Sprintf("%s|%s|%s", e["datetime"], e["timestamp_desc"], e["message"]))
	}
	want := []string{`2026-01-01T00:00:00.000000+00:00|Access, Modification Time|MA.. /tmp/a|b\x0a\\c -> /x`, `2026-01-01T00:00:01.000000+00:00|Metadata Change Time|..C. /tmp/a|b\x0a\\c -> /x`,
		`1969-12-31T23:59:58.500000+00:00|Access Time|.A.. /old`}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if len(r.Bad) != 1 || r.Bad[0].Rows != 2 || r.Bad[0].Line != 2 {
		t.Errorf("bad rows %+v, want 2 from line 2 on", r.Bad)
	}
}

// TestHostileRows: no row breaks a line, a terminal or an index.
func TestHostileRows(t *testing.T) {
	long := strings.Repeat("é", 60_000)
	var fields strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&fields, `,"f%d":"%s"`, i, strings.Repeat("x", 4000))
	}
	text := `{"started":"2026-01-01T00:00:00Z","name":"\u001b[31mred\u202egpj\n\u0000\u200b"}` + "\n" +
		`{"started":"2026-01-01T00:00:00Z","name":"` + long + `"}` + "\n" +
		`{"started":"2026-01-01T00:00:00Z"` + fields.String() + "}\n" +
		"{\"started\":\"2026-01-01T00:00:00Z\",\"name\":\"\xff\"}\n" +
		"no json\n[]\n{\"a\":1} {}\n{\"started\":\"yesterday\"}\n{\"started\":\"\xe2\x80\xae\"}\n" + strings.Repeat("x", maxRow+1) + "\n"
	events, r := eventsOf(t, "processes", evidence.JSONL, text)
	if len(events) != 4 || len(r.Bad) != 1 || r.Bad[0].Rows != 6 || r.Bad[0].Line != 5 {
		t.Fatalf("%d events, bad %+v", len(events), r.Bad)
	}
	if want := `\u{1b}[31mred\u{202e}gpj\u{a}\u{0}\u{200b}`; events[0]["name"] != want || !strings.HasSuffix(events[0]["message"].(string), want) {
		t.Errorf("name %q, message %q", events[0]["name"], events[0]["message"])
	}
	for _, e := range events {
		total := 0
		for k, v := range e {
			if s, ok := v.(string); ok {
				total += len(s)
				if len(s) > maxValue || !utf8.ValidString(s) || k != "datetime" && strings.ContainsAny(s, "\n\x1b\u202e") {
					t.Errorf("%s has %d bytes: %.40q", k, len(s), s)
				}
			}
		}
		if total > maxEvent+maxMessage+1000 || len(e) > maxFields+12 {
			t.Errorf("an event of %d bytes, %d fields", total, len(e))
		}
	}
	if events[1]["cut"] != "true" || events[2]["cut"] != "true" || events[0]["cut"] != nil {
		t.Error("what is cut is not marked")
	}
}

// TestAnItemThatIsCut gives the events of what there is, and says so.
func TestAnItemThatIsCut(t *testing.T) {
	b := bucket{}
	item := b.store(t, "logins", evidence.JSONL, strings.Repeat(`{"time":"2026-01-01T00:00:00Z","user":"root"}`+"\n", 10))
	item.Status, item.Parts = evidence.Partial, append(item.Parts[:1:1], item.Parts[2:]...)
	var out bytes.Buffer
	r, err := Write(t.Context(), b, evidence.Manifest{Items: []evidence.Item{item}}, nil, &out)
	if err != nil || r.Events != 2 || !strings.Contains(r.Lacks(), "was not stored whole") || len(r.Bad) != 0 {
		t.Errorf("%+v, %v; want the 2 rows that are whole in part 1", r, err)
	}
}

// TestEvidenceThatDoesNotHold ends the timeline.
func TestEvidenceThatDoesNotHold(t *testing.T) {
	row := `{"time":"2026-01-01T00:00:00Z"}` + "\n"
	for name, damage := range map[string]func(b bucket, i *evidence.Item){
		"a byte is another":       func(b bucket, i *evidence.Item) { b[i.Key][9] ^= 1 },
		"the object is cut":       func(b bucket, i *evidence.Item) { b[i.Key] = b[i.Key][:len(b[i.Key])-1] },
		"it has more than it may": func(_ bucket, i *evidence.Item) { i.Parts[0].RawSize-- },
		"it has less":             func(_ bucket, i *evidence.Item) { i.Parts[0].RawSize++ },
	} {
		b := bucket{}
		item := b.store(t, "logins", evidence.JSONL, row)
		damage(b, &item)
		if _, err := Write(t.Context(), b, evidence.Manifest{Items: []evidence.Item{item}}, nil, io.Discard); !errors.Is(err, proof.ErrNotProven) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCaseEvents: the case's own story stands in the timeline.
func TestCaseEvents(t *testing.T) {
	at := time.Date(2026, 11, 26, 4, 0, 0, 0, time.UTC)
	var entries []custody.Entry
	for i, e := range []any{
		casefile.Event{Type: casefile.FindingJoined, Finding: &casefile.Finding{Type: "Trojan:EC2/X", Title: "bad\x1b", Severity: 8}},
		casefile.Event{Type: casefile.Fact, Step: "contain", Interfaces: []evidence.Interface{{ID: "eni-1", Before: []string{"sg-1"}, After: []string{"sg-2"}}}},
		[]int{1},
	} {
		raw, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, custody.Entry{Seq: i + 1, Time: at, Event: raw})
	}
	var out bytes.Buffer
	r, err := Write(t.Context(), bucket{}, evidence.Manifest{}, entries, &out)
	if err != nil || len(r.Bad) != 1 || r.Bad[0].Line != 3 {
		t.Fatalf("%+v, %v", r, err)
	}
	events := lines(t, out.Bytes())
	if events[0]["message"] != `finding joined, Trojan:EC2/X: bad\u{1b}` || !strings.Contains(events[1]["message"].(string), "eni-1 had security groups sg-1 and has sg-2") {
		t.Errorf("events %v", events)
	}
}

// FuzzLine: whatever a line is, it gives lines of JSON, or a bad row.
func FuzzLine(f *testing.F) {
	f.Add([]byte(`{"time":"2026-01-01T00:00:00Z","user":"\ud800"}`))
	f.Add([]byte(`0|/a\|b|1|r|0|0|1|1.5|2|3|4`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var out bytes.Buffer
		tl := &timeline{writer: writer{out: bufio.NewWriter(&out)}}
		for _, do := range []func([]byte) error{tl.bodyLine, func(l []byte) error { return tl.row("logins", rulesOf("logins"), l) },
			func(l []byte) error { return tl.row("other", nil, l) }} {
			if err := do(line); err != nil && !errors.Is(err, errBad) {
				t.Fatal(err)
			}
		}
		tl.out.Flush()
		if got := lines(t, out.Bytes()); int64(len(got)) != tl.events {
			t.Errorf("%d lines of %d events", len(got), tl.events)
		}
	})
}

func BenchmarkTimeline(b *testing.B) {
	const rows = 20_000
	row := `{"case":"c1","instance":"i-1","collected_at":"2026-11-26T04:00:00Z","pid":7,"ppid":1,"name":"sh","started":"2026-11-26T03:00:00Z","cmdline":["sh","-c","id"],"exe":"/bin/sh"}` + "\n"
	line := "0|/usr/lib/x86_64-linux-gnu/libc.so.6|1234|r/rrwxr-xr-x|0|0|2000000|1767225600.1|1767225601.2|1767225602.3|1767225603.4\n"
	for name, of := range map[string]struct {
		item   string
		format evidence.Format
		text   string
	}{"rows": {"processes", evidence.JSONL, row}, "bodyfile": {"bodyfile", evidence.Text, line}} {
		b.Run(name, func(b *testing.B) {
			objects := bucket{}
			m := evidence.Manifest{Items: []evidence.Item{objects.store(b, of.item, of.format, strings.Repeat(of.text, rows))}}
			var events int64
			for b.Loop() {
				r, err := Write(b.Context(), objects, m, nil, io.Discard)
				if err != nil {
					b.Fatal(err)
				}
				events += r.Events
			}
			b.ReportMetric(float64(events)/b.Elapsed().Seconds(), "events/s")
		})
	}
}
