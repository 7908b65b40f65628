package artifact

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		child()
	}
	goleak.VerifyTestMain(m)
}

// table writes one table of h, and gives its rows and its record.
func table[R any](t testing.TB, h *Host, name string) ([]R, []Entry) {
	t.Helper()
	var out bytes.Buffer
	var rec Record
	for _, table := range append(h.Volatile(), h.Live()...) {
		if table.Name == name {
			if err := table.Write(t.Context(), &out, &rec); err != nil {
				t.Fatal(err)
			}
			return rows[R](t, &out), entries(t, &rec)
		}
	}
	t.Fatalf("there is no table %q", name)
	return nil, nil
}

// rows decodes JSON Lines strictly: every field must be documented in R.
func rows[R any](t testing.TB, r io.Reader) []R {
	t.Helper()
	var out []R
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var row R
		dec := json.NewDecoder(bytes.NewReader(unstamped(t, lines.Bytes())))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&row); err != nil {
			t.Fatalf("row %.200q: %v", lines.Text(), err)
		}
		out = append(out, row)
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

// unstamped gives a row without its stamp, which it must have.
func unstamped(t testing.TB, line []byte) []byte {
	t.Helper()
	var row map[string]json.RawMessage
	if err := json.Unmarshal(line, &row); err != nil {
		t.Fatalf("row %.200q: %v", line, err)
	}
	if _, ok := row["collected_at"]; !ok {
		t.Fatalf("row %.200q does not say when it was collected", line)
	}
	for _, field := range []string{"case", "instance", "collected_at"} {
		delete(row, field)
	}
	rest, err := json.Marshal(row)
	if err != nil {
		t.Fatal(err)
	}
	return rest
}

// entries reads a record, without its summary.
func entries(t testing.TB, rec *Record) []Entry {
	t.Helper()
	var out bytes.Buffer
	if _, err := rec.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	all := bytes.SplitAfter(bytes.TrimSuffix(out.Bytes(), []byte("\n")), []byte("\n"))
	return rows[Entry](t, bytes.NewReader(bytes.Join(all[:len(all)-1], nil)))
}

// find gives the entry for a path.
func find(t testing.TB, all []Entry, path string) Entry {
	t.Helper()
	for _, e := range all {
		if string(e.Path) == path {
			return e
		}
	}
	t.Fatalf("nothing on record for %q among %d entries", path, len(all))
	return Entry{}
}

// place writes files below a root, making their folders.
func place(t testing.TB, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestVolatileTablesAllWriteOnThisHost(t *testing.T) {
	var rec Record
	for _, table := range new(Host).Volatile() {
		var out bytes.Buffer
		if err := table.Write(t.Context(), &out, &rec); err != nil {
			t.Errorf("%s: %v", table.Name, err)
		}
		for _, line := range bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n")) {
			if len(line) > 0 && !json.Valid(line) {
				t.Errorf("%s: not JSON: %.200q", table.Name, line)
			}
		}
		if !itemName(table.Name) || table.Doc == "" {
			t.Errorf("table %q needs a name of [a-z][a-z0-9_]{0,39} and a doc", table.Name)
		}
	}
	if got := len(entries(t, &rec)); got < len(new(Host).Volatile()) {
		t.Errorf("%d entries on record, want one for each table at least", got)
	}
}

func itemName(s string) bool {
	for i, r := range s {
		if !(r >= 'a' && r <= 'z' || i > 0 && (r == '_' || r >= '0' && r <= '9')) {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 40
}

// A root in which nothing is: every table still ends, and says what is missing.
func TestVolatileOnAnEmptyRoot(t *testing.T) {
	h := &Host{Root: t.TempDir()}
	for _, table := range append(h.Volatile(), h.Live()...) {
		var rec Record
		if err := table.Write(t.Context(), io.Discard, &rec); err != nil {
			t.Errorf("%s: %v", table.Name, err)
		}
		if len(entries(t, &rec)) < 2 {
			t.Errorf("%s says nothing of what it did not find", table.Name)
		}
	}
}

func TestTableEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, table := range new(Host).Volatile() {
		if table.Name == "logins" || table.Name == "modules" {
			continue // this host may have none, and an empty table is whole
		}
		var rec Record
		if err := table.Write(ctx, io.Discard, &rec); err == nil {
			t.Errorf("%s was written whole after its context had ended", table.Name)
		}
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestTableFailsWhenItsPlaceDoes(t *testing.T) {
	var rec Record
	if err := new(Host).Volatile()[0].Write(t.Context(), brokenWriter{}, &rec); err == nil {
		t.Error("a table whose bytes went nowhere was called whole")
	}
}
