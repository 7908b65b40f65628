// Package packages reads the databases of dpkg and rpm, as bytes alone.
package packages

import (
	"bufio"
	"io"
	"strings"
)

// Package is an installed package, as its database tells it.
type Package struct {
	Name, Version, Arch string
	Source              string // the source package's name, or the source rpm's
	Vendor              string // or the maintainer
	Section             string // or the group
	Status              string // of dpkg: want, error and state
	InstalledKiB        int64
	InstallTime         int64 // seconds since 1970; of rpm
	BuildTime           int64
	Signature           string // of rpm: hex of the signature's key ID, where it has one
	Files               int64  // of rpm
}

// Bounds of what is read.
const (
	maxText   = 1024
	maxStatus = 64 << 10 // bytes of a line
)

// Status reads a file of the form of /var/lib/dpkg/status, and gives each
// package to do until it fails. odd counts paragraphs without a name and lines
// that were cut.
// Source: dpkg(1), deb822(5).
func Status(r io.Reader, do func(Package) error) (odd int, err error) {
	in := bufio.NewReaderSize(r, maxStatus)
	var p Package
	any := false
	end := func() error {
		defer func() { p, any = Package{}, false }()
		if !any {
			return nil
		}
		if p.Name == "" {
			odd++
			return nil
		}
		return do(p)
	}
	for {
		line, readErr := in.ReadSlice('\n')
		if readErr == bufio.ErrBufferFull {
			odd++
			line = append([]byte(nil), line...)
			for readErr == bufio.ErrBufferFull {
				_, readErr = in.ReadSlice('\n')
			}
		}
		text := strings.TrimRight(string(line), "\r\n")
		switch {
		case strings.TrimSpace(text) == "":
			if err := end(); err != nil {
				return odd, err
			}
		case text[0] != ' ' && text[0] != '\t':
			any = true
			p.field(text)
		}
		if readErr == io.EOF {
			return odd, end()
		}
		if readErr != nil {
			return odd, readErr
		}
	}
}

func (p *Package) field(line string) {
	key, value, _ := strings.Cut(line, ":")
	value = clip(strings.TrimSpace(value))
	switch key {
	case "Package":
		p.Name = value
	case "Version":
		p.Version = value
	case "Architecture":
		p.Arch = value
	case "Source":
		p.Source = value
	case "Maintainer":
		p.Vendor = value
	case "Section":
		p.Section = value
	case "Status":
		p.Status = value
	case "Installed-Size":
		for _, c := range value {
			if c < '0' || c > '9' || p.InstalledKiB > 1<<50 {
				return
			}
			p.InstalledKiB = p.InstalledKiB*10 + int64(c-'0')
		}
	}
}

func clip(s string) string { return s[:min(len(s), maxText)] }
