package sqlite

import (
	"bytes"
	"fmt"
	"os"
	"testing"
)

// testdata/t.db was made by SQLite 3 with pages of 512 bytes:
//
//	create table t(id integer primary key, name text, n int, f real, b blob, missing)
//
// with 60 rows (i, "name"+i, i*-70000, i/2, i*40 bytes of i, null), so its
// tree is more than a leaf and most rows overflow; and an empty table.
func TestRowsAsSQLiteWroteThem(t *testing.T) {
	data, err := os.ReadFile("testdata/t.db")
	if err != nil {
		t.Fatal(err)
	}
	db, err := Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := db.Tables()
	if err != nil || len(tables) != 2 || tables[0].Name != "t" || tables[1].Name != "empty" {
		t.Fatalf("got %+v, %v", tables, err)
	}
	count := int64(0)
	for row, err := range db.Rows(tables[0]) {
		if err != nil {
			t.Fatal(err)
		}
		count++
		i := count
		want := []Value{nil, fmt.Sprint("name", i), i * -70000, float64(i) / 2}
		for c, v := range want {
			if got := row.Values[c]; got != v && !(c == 3 && got == Value(i/2)) { // SQLite stores whole reals as integers
				t.Errorf("row %d, column %d: got %v, want %v", i, c, got, v)
			}
		}
		if b, _ := row.Values[4].([]byte); row.ID != i || !bytes.Equal(b, bytes.Repeat([]byte{byte(i)}, int(i)*40)) || row.Values[5] != nil {
			t.Errorf("row %d: got ID %d and %d bytes", i, row.ID, len(b))
		}
	}
	if count != 60 {
		t.Errorf("%d rows, want 60", count)
	}
	for row, err := range db.Rows(tables[1]) {
		t.Errorf("the empty table gives %v, %v", row, err)
	}
}

// A page that leads to itself ends the walk of that part, and is told.
func TestLoopOfPages(t *testing.T) {
	data, err := os.ReadFile("testdata/t.db")
	if err != nil {
		t.Fatal(err)
	}
	copy(data[512+8:], []byte{0, 0, 0, 2}) // the rightmost child of t's root is itself
	db, err := Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	rows, errs := 0, 0
	for _, err := range db.Rows(Table{root: 2}) {
		if rows++; err != nil {
			errs++
		}
	}
	if errs != 1 || rows < 2 {
		t.Errorf("%d rows, %d errors", rows, errs)
	}
}

func FuzzRows(f *testing.F) {
	data, err := os.ReadFile("testdata/t.db")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data[:2048])
	f.Fuzz(func(t *testing.T, data []byte) {
		db, err := Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		tables, _ := db.Tables()
		for _, table := range tables[:min(len(tables), 8)] {
			for row, err := range db.Rows(table) {
				if err == nil && len(row.Values) > MaxColumns {
					t.Error("unbounded row")
				}
			}
		}
	})
}
