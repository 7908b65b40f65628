// Package sqlite reads tables of SQLite databases, as bytes alone: it takes no
// locks, writes nothing and follows no journal, so it shows what was last
// checkpointed.
package sqlite

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
)

// Bounds of what is read.
const (
	MaxBytes   = 1 << 30  // of a database
	MaxPayload = 16 << 20 // bytes of one row
	MaxColumns = 256
	maxDepth   = 32 // of a tree; SQLite's own are under 20
)

// DB is a database. Source: sqlite.org/fileformat2.html.
type DB struct {
	r        io.ReaderAt
	page     int64 // bytes of a page
	usable   int64 // bytes of a page that are used
	pages    int64
	encoding uint32 // 1 is UTF-8
}

// Open reads the header of a database of size bytes.
func Open(r io.ReaderAt, size int64) (*DB, error) {
	if size > MaxBytes {
		return nil, fmt.Errorf("cannot read database: it has %d bytes, and at most %d are read", size, MaxBytes)
	}
	var head [100]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("cannot read database header: %w", err)
	}
	if string(head[:16]) != "SQLite format 3\x00" {
		return nil, errors.New("cannot read database: it does not begin as SQLite's do")
	}
	db := &DB{r: r, page: int64(binary.BigEndian.Uint16(head[16:])), encoding: binary.BigEndian.Uint32(head[56:])}
	if db.page == 1 {
		db.page = 65536
	}
	if db.page < 512 || db.page&(db.page-1) != 0 {
		return nil, fmt.Errorf("cannot read database: no page has %d bytes", db.page)
	}
	db.usable = db.page - int64(head[20])
	if db.usable < 480 {
		return nil, fmt.Errorf("cannot read database: %d usable bytes in a page, want 480", db.usable)
	}
	if db.encoding != 1 {
		return nil, fmt.Errorf("cannot read database: text encoding %d, want 1, UTF-8", db.encoding)
	}
	db.pages = size / db.page
	return db, nil
}

// Value is a column: nil, int64, float64, string or []byte.
type Value any

// Row is a row of a table.
type Row struct {
	ID     int64 // the rowid, also of a column INTEGER PRIMARY KEY, whose value is nil
	Values []Value
}

// Table is one of the tables.
type Table struct {
	Name string
	SQL  string // the statement that made it
	root int64
}

// Tables lists the tables.
func (db *DB) Tables() ([]Table, error) {
	var all []Table
	for row, err := range db.walk(1) {
		if err != nil {
			return all, err
		}
		if len(row.Values) < 5 || row.Values[0] != "table" {
			continue
		}
		name, _ := row.Values[1].(string)
		root, _ := row.Values[3].(int64)
		sql, _ := row.Values[4].(string)
		if len(all) == 1024 {
			return all, errors.New("cannot list tables: more than 1024")
		}
		all = append(all, Table{name, sql, root})
	}
	return all, nil
}

// Rows gives the rows of a table, in the order of their IDs. A part that is
// broken gives an error, and the walk goes on behind it; it ends after 64 of
// them.
func (db *DB) Rows(t Table) iter.Seq2[Row, error] { return db.walk(t.root) }

// walker visits one table's pages, each once.
type walker struct {
	db     *DB
	yield  func(Row, error) bool
	seen   []bool // by page
	left   int64  // bytes of rows that may still be told: rows of a page may overlap
	broken int
}

func (db *DB) walk(root int64) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		w := &walker{db: db, yield: yield, seen: make([]bool, db.pages+1), left: 2 * db.pages * db.page}
		w.visit(root, 0)
	}
}

// fail tells of a broken part, and whether to go on.
func (w *walker) fail(err error) bool {
	w.broken++
	return w.yield(Row{}, err) && w.broken < 64
}

func (w *walker) visit(number int64, depth int) bool {
	if depth > maxDepth {
		return w.fail(fmt.Errorf("cannot read page %d: more than %d deep", number, maxDepth))
	}
	page, err := w.read(number)
	if err != nil {
		return w.fail(err)
	}
	head := page
	if number == 1 {
		head = page[100:]
	}
	size, cells := 8, int(binary.BigEndian.Uint16(head[3:]))
	leaf := head[0] == 13
	if !leaf {
		size = 12
	}
	if !leaf && head[0] != 5 || size+2*cells > len(head) {
		return w.fail(fmt.Errorf("cannot read page %d: kind %d with %d cells is no table's", number, head[0], cells))
	}
	for i := range cells {
		at := int(binary.BigEndian.Uint16(head[size+2*i:]))
		if at > len(page) {
			at = len(page)
		}
		if !w.cell(page[at:], leaf, depth) {
			return false
		}
	}
	return leaf || w.visit(int64(binary.BigEndian.Uint32(head[8:])), depth+1)
}

func (w *walker) cell(cell []byte, leaf bool, depth int) bool {
	if !leaf {
		if len(cell) < 4 {
			return w.fail(errors.New("cannot read cell: outside of its page"))
		}
		return w.visit(int64(binary.BigEndian.Uint32(cell)), depth+1)
	}
	row, err := w.row(cell)
	if err != nil {
		return w.fail(err) && w.left > 0
	}
	return w.yield(row, nil)
}

// read reads a page. Each is read once, so that no loop of pages and no page
// that many rows share makes a walk longer than its file.
func (w *walker) read(number int64) ([]byte, error) {
	db := w.db
	if number < 1 || number > db.pages {
		return nil, fmt.Errorf("cannot read page %d: the file has %d", number, db.pages)
	}
	if w.seen[number] {
		return nil, fmt.Errorf("cannot read page %d: reached twice", number)
	}
	w.seen[number] = true
	page := make([]byte, db.page)
	if _, err := db.r.ReadAt(page, (number-1)*db.page); err != nil {
		return nil, fmt.Errorf("cannot read page %d: %w", number, err)
	}
	return page[:db.usable], nil
}

// row reads a cell of a leaf: payload's size, rowid, payload.
func (w *walker) row(cell []byte) (Row, error) {
	size, n := varint(cell)
	id, m := varint(cell[n:])
	if n == 0 || m == 0 || size < 0 || size > MaxPayload {
		return Row{}, fmt.Errorf("cannot read row: its payload of %d bytes is not between 0 and %d", size, MaxPayload)
	}
	if w.left -= size; w.left < 0 {
		return Row{}, errors.New("cannot read more rows: they overlap")
	}
	payload, err := w.payload(cell[n+m:], size)
	if err != nil {
		return Row{}, fmt.Errorf("cannot read row %d: %w", id, err)
	}
	values, err := record(payload)
	if err != nil {
		return Row{}, fmt.Errorf("cannot read row %d: %w", id, err)
	}
	return Row{id, values}, nil
}

// payload joins what is in the page and what overflowed.
func (w *walker) payload(local []byte, size int64) ([]byte, error) {
	db := w.db
	here := size
	if most := db.usable - 35; size > most {
		least := (db.usable-12)*32/255 - 23
		here = least + (size-least)%(db.usable-4)
		if here > most {
			here = least
		}
	}
	if here > int64(len(local)) {
		return nil, errors.New("its payload leaves the page")
	}
	if here == size {
		return local[:size], nil
	}
	if here+4 > int64(len(local)) {
		return nil, errors.New("its payload leaves the page")
	}
	if size > db.pages*db.page {
		return nil, errors.New("its payload is larger than the file")
	}
	out := append(make([]byte, 0, here), local[:here]...)
	next := int64(binary.BigEndian.Uint32(local[here:]))
	for int64(len(out)) < size { // each page adds at least 476 bytes
		page, err := w.read(next)
		if err != nil {
			return nil, err
		}
		next = int64(binary.BigEndian.Uint32(page))
		out = append(out, page[4:min(int64(len(page)), 4+size-int64(len(out)))]...)
	}
	return out, nil
}

// record reads the columns of a payload.
func record(b []byte) ([]Value, error) {
	size, n := varint(b)
	if n == 0 || size < int64(n) || size > int64(len(b)) {
		return nil, errors.New("its header leaves it")
	}
	head, body := b[n:size], b[size:]
	var out []Value
	for len(head) > 0 {
		kind, n := varint(head)
		if n == 0 || kind < 0 || len(out) == MaxColumns {
			return nil, fmt.Errorf("column %d has no form", len(out))
		}
		head = head[n:]
		length := width(kind)
		if length > int64(len(body)) {
			return nil, fmt.Errorf("column %d leaves it", len(out))
		}
		out = append(out, value(kind, body[:length]))
		body = body[length:]
	}
	return out, nil
}

// width gives the bytes of a column of a serial type.
func width(kind int64) int64 {
	if kind >= 12 {
		return (kind - 12) / 2
	}
	return [...]int64{0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0}[kind]
}

func value(kind int64, b []byte) Value {
	switch {
	case kind == 0 || kind == 10 || kind == 11:
		return nil
	case kind == 7:
		return math.Float64frombits(binary.BigEndian.Uint64(b))
	case kind == 8 || kind == 9:
		return kind - 8
	case kind < 7:
		n := int64(int8(b[0]))
		for _, c := range b[1:] {
			n = n<<8 | int64(c)
		}
		return n
	case kind%2 == 0:
		return bytes.Clone(b)
	}
	return string(b)
}

// varint reads a number of one to nine bytes; n is 0 where b ends within it.
func varint(b []byte) (v int64, n int) {
	for i := range min(len(b), 9) {
		if i == 8 {
			return v<<8 | int64(b[i]), 9
		}
		v = v<<7 | int64(b[i]&0x7f)
		if b[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, 0
}
