package artifact

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"path"
	"strings"
)

// Bounds of the table ssh_keys.
const (
	maxKeysBytes = 4 << 20 // of one file
	maxKeys      = 100_000
)

// SSHKey is a row of the table ssh_keys: a public key of a home or of the host.
type SSHKey struct {
	// Use is authorized (it lets its owner in), public (of a pair that lies
	// there), known_host, or host (of the host itself).
	Use  string `json:"use"`
	User Text   `json:"user,omitempty"`
	FileFacts
	Line        int    `json:"line"`
	Type        string `json:"type"`           // ssh-ed25519 …
	Fingerprint string `json:"fingerprint"`    // SHA256:…, as ssh-keygen -l says it
	Bits        int    `json:"bits,omitempty"` // of an RSA modulus
	Comment     Text   `json:"comment,omitempty"`
	Options     Text   `json:"options,omitempty"` // before an authorized key: command="…" and the like; of a known_host its names
}

// fillSSHKeys writes the table ssh_keys: those of homes and of /etc/ssh. Files
// that sshd_config names elsewhere are not followed.
func fillSSHKeys(h *Host, s *sheet) error {
	t, err := h.openTree(s)
	if err != nil {
		return err
	}
	defer t.close()
	homes, err := t.accountHomes(h)
	if err != nil {
		return err
	}
	left := maxKeys
	for _, a := range homes {
		if err := t.keys(path.Join(string(a.home), ".ssh"), a.user, "", &left); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/etc/ssh", "/etc/ssh/authorized_keys", "/etc/ssh/authorized_keys.d"} {
		use := "authorized"
		if dir == "/etc/ssh" {
			use = ""
		}
		if err := t.keys(dir, "", use, &left); err != nil {
			return err
		}
	}
	if left == maxKeys {
		s.note("/root/.ssh", NoteNone, "")
	}
	return nil
}

// keyUse tells what keys a file of .ssh holds, "" where it holds none that are
// public. Private ones are not opened.
func keyUse(dir, name string) string {
	switch {
	case strings.HasPrefix(name, "authorized_keys"):
		return "authorized"
	case strings.HasPrefix(name, "known_hosts"), strings.HasPrefix(name, "ssh_known_hosts"):
		return "known_host"
	case strings.HasSuffix(name, ".pub") && dir == "/etc/ssh":
		return "host"
	case strings.HasSuffix(name, ".pub"):
		return "public"
	}
	return ""
}

func (t *tree) keys(dir string, user Text, use string, left *int) error {
	for _, name := range t.names(dir) {
		kind := use
		if kind == "" {
			kind = keyUse(dir, name)
		}
		if kind == "" {
			continue
		}
		at := path.Join(dir, name)
		f := t.file(at, maxKeysBytes)
		if f == nil {
			continue
		}
		number := 0
		for line := range strings.Lines(string(f.data)) {
			number++
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			row, ok := parseSSHKey(line)
			if !ok {
				t.s.note(at, NoteOdd, fmt.Sprintf("line %d", number))
				continue
			}
			if *left--; *left < 0 {
				t.s.note(at, NoteCut, fmt.Sprintf("more than %d keys", maxKeys))
				return nil
			}
			row.Use, row.User, row.FileFacts, row.Line = kind, user, f.FileFacts, number
			if err := t.s.put(row); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseSSHKey reads a line of authorized_keys, known_hosts or a .pub file:
// options or host names, the type, the key in base64, a comment. Options may
// hold spaces within quotes.
// Source: sshd(8), "AUTHORIZED_KEYS FILE FORMAT"; RFC 4253, 6.6.
func parseSSHKey(line string) (row SSHKey, ok bool) {
	for at := 0; at < len(line); {
		end := at + wordEnd(line[at:])
		kind := line[at:end]
		rest := strings.TrimLeft(line[end:], " \t")
		text := rest[:wordEnd(rest)]
		if blob, err := base64.StdEncoding.DecodeString(text); err == nil && keyType(blob) == kind && kind != "" {
			sum := sha256.Sum256(blob)
			return SSHKey{Type: kind, Fingerprint: "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:]), Bits: rsaBits(blob),
				Comment: clip(strings.TrimSpace(rest[len(text):]), maxPath), Options: clip(strings.TrimSpace(line[:at]), maxPath)}, true
		}
		if at > 0 && strings.Count(line[:at], " ") > 4 {
			return row, false
		}
		at = len(line) - len(rest)
	}
	return row, false
}

// wordEnd tells where the first word ends; spaces in double quotes are part of
// it, and \" is no quote.
func wordEnd(s string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '"':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && (s[i] == ' ' || s[i] == '\t'):
			return i
		}
	}
	return len(s)
}

// keyType reads the name that a key's bytes begin with.
func keyType(blob []byte) string {
	name, _ := sshString(blob)
	if len(name) > 64 {
		return ""
	}
	return string(name)
}

func sshString(b []byte) (s, rest []byte) {
	if len(b) < 4 {
		return nil, nil
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil
	}
	return b[4 : 4+n], b[4+n:]
}

// rsaBits tells the length of an RSA key's modulus; of other keys 0.
func rsaBits(blob []byte) int {
	name, rest := sshString(blob)
	if string(name) != "ssh-rsa" {
		return 0
	}
	_, rest = sshString(rest) // the exponent
	modulus, _ := sshString(rest)
	for len(modulus) > 0 && modulus[0] == 0 {
		modulus = modulus[1:]
	}
	bits := len(modulus) * 8
	if len(modulus) > 0 {
		for top := modulus[0]; top&0x80 == 0; top <<= 1 {
			bits--
		}
	}
	return bits
}
