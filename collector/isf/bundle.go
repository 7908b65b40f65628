package isf

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Bounds of a bundle, in bytes. Types of BTF grow some thirtyfold in memory;
// those of a distribution's kernel have 4 to 10 MiB.
const (
	maxBundle  = 1 << 30
	maxSymbols = 64 << 20 // kallsyms, System.map
	maxBTF     = 32 << 20
	maxSmall   = 1 << 20
)

// ErrBundle says that a bundle does not hold what a symbol file needs.
var ErrBundle = errors.New("the bundle of symbols does not serve")

// Bundle is what a symbol file is made of: members of the agent's tar.
type Bundle struct {
	Banner     []byte // /proc/version
	Kallsyms   []byte // /proc/kallsyms; nil where the agent could not read it
	SystemMap  []byte // /boot/System.map-RELEASE; nil likewise
	BTF        []byte // /sys/kernel/btf/vmlinux
	VMCoreInfo []byte
	Machine    string   // x86_64, aarch64
	Lacks      []string // what the agent could not read, and why
}

// ReadBundle reads the tar that the agent made, uncompressed.
func ReadBundle(r io.Reader) (Bundle, error) {
	var b Bundle
	var index []byte
	members := map[string]struct {
		into  *[]byte
		limit int64
	}{
		"version": {&b.Banner, 4096}, "kallsyms": {&b.Kallsyms, maxSymbols}, "System.map": {&b.SystemMap, maxSymbols},
		"btf/vmlinux": {&b.BTF, maxBTF}, "vmcoreinfo": {&b.VMCoreInfo, maxSmall}, "bundle.json": {&index, maxSmall},
	}
	archive := tar.NewReader(io.LimitReader(r, maxBundle))
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return b, fmt.Errorf("cannot read the bundle of symbols: %w", err)
		}
		m, wanted := members[header.Name]
		if !wanted || header.Typeflag != tar.TypeReg {
			continue
		}
		if *m.into != nil {
			return b, fmt.Errorf("%w: it has two members %s", ErrBundle, header.Name)
		}
		if header.Size > m.limit {
			return b, fmt.Errorf("%w: its member %s has %d bytes, over %d", ErrBundle, header.Name, header.Size, m.limit)
		}
		*m.into = make([]byte, header.Size)
		if _, err := io.ReadFull(archive, *m.into); err != nil {
			return b, fmt.Errorf("cannot read %s in the bundle of symbols: %w", header.Name, err)
		}
	}
	return b, b.readIndex(index)
}

// readIndex learns from bundle.json which machine it was, and what is
// missing. A bundle that was cut off has none.
func (b *Bundle) readIndex(body []byte) error {
	if body == nil {
		return fmt.Errorf("%w: bundle.json is missing, so it was cut off or is none of ours", ErrBundle)
	}
	var index struct {
		Uname struct {
			Machine string `json:"machine"`
		} `json:"uname"`
		Files []struct {
			Name   string `json:"name"`
			SHA256 string `json:"sha256"`
			Note   string `json:"note"`
			Error  string `json:"error"`
			Cut    bool   `json:"cut"`
		} `json:"files"`
	}
	if err := json.Unmarshal(body, &index); err != nil {
		return fmt.Errorf("%w: bundle.json: %w", ErrBundle, err)
	}
	b.Machine = index.Uname.Machine
	for _, f := range index.Files {
		switch {
		case f.SHA256 == "" && f.Error != "":
			b.Lacks = append(b.Lacks, fmt.Sprintf("%s: %s", f.Name, f.Error))
		case f.Error != "":
			b.Lacks = append(b.Lacks, fmt.Sprintf("%s is not whole: %s", f.Name, f.Error))
		case f.Cut:
			b.Lacks = append(b.Lacks, f.Name+" was cut: it is larger than the agent takes")
		}
		if f.Note != "" {
			b.Lacks = append(b.Lacks, fmt.Sprintf("%s: %s", f.Name, f.Note))
		}
	}
	return nil
}
