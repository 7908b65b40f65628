package isf

import (
	"encoding/json"
	"fmt"
	"io"
)

// Format is the version of the schema.
const Format = "6.2.0"

// File is a symbol file. Source: Volatility 3, schemas/schema-6.2.0.json.
// Maps are written in the order of their keys, so the same bundle gives the
// same bytes.
type File struct {
	Metadata  metadata            `json:"metadata"`
	BaseTypes map[string]baseType `json:"base_types"`
	UserTypes map[string]userType `json:"user_types"`
	Enums     map[string]enum     `json:"enums"`
	Symbols   map[string]variable `json:"symbols"`
}

type metadata struct {
	Format   string   `json:"format"`
	Producer producer `json:"producer"`
	Linux    origin   `json:"linux"`
}

type producer struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// origin says what the file was made of.
type origin struct {
	Symbols []source `json:"symbols"`
	Types   []source `json:"types"`
}

// source is one of them. The schema has no word for BTF; symtab is the one
// that claims least.
type source struct {
	Kind      string `json:"kind"` // dwarf, symtab or system-map
	Name      string `json:"name"`
	HashType  string `json:"hash_type"`
	HashValue string `json:"hash_value"`
}

type baseType struct {
	Size   uint32 `json:"size"`
	Signed bool   `json:"signed"`
	Kind   string `json:"kind"` // void, int, float, char, bool
	Endian string `json:"endian"`
}

type userType struct {
	Kind   string           `json:"kind"` // struct, union
	Size   uint32           `json:"size"`
	Fields map[string]field `json:"fields"`
}

type field struct {
	Type      *descriptor `json:"type"`
	Offset    uint32      `json:"offset"` // bytes
	Anonymous bool        `json:"anonymous,omitempty"`
}

// descriptor tells a type where it is used; which fields it has is its
// kind's.
type descriptor struct {
	Kind        string      `json:"kind"` // pointer, base, array, struct, union, enum, function, bitfield
	Name        string      `json:"name,omitempty"`
	Subtype     *descriptor `json:"subtype,omitempty"`
	Count       *uint32     `json:"count,omitempty"`
	BitPosition *uint32     `json:"bit_position,omitempty"`
	BitLength   *uint32     `json:"bit_length,omitempty"`
	Type        *descriptor `json:"type,omitempty"` // of a bitfield
}

type enum struct {
	Size      uint32                 `json:"size"`
	Base      string                 `json:"base"`
	Constants map[string]json.Number `json:"constants"`
}

type variable struct {
	Address      uint64      `json:"address"`
	Type         *descriptor `json:"type,omitempty"`
	ConstantData []byte      `json:"constant_data,omitempty"` // in JSON as base64
}

// WriteTo writes the file's JSON.
func (f *File) WriteTo(w io.Writer) (int64, error) {
	body, err := json.Marshal(f)
	if err != nil {
		return 0, fmt.Errorf("cannot write the symbol file: %w", err)
	}
	n, err := w.Write(append(body, '\n'))
	if err != nil {
		return int64(n), fmt.Errorf("cannot write the symbol file: %w", err)
	}
	return int64(n), nil
}
