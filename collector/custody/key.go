package custody

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxKeyFile bounds a PEM file, in bytes.
const maxKeyFile = 64 << 10

// Signer signs what the collector states. A Key is one.
type Signer interface {
	// Sign gives the Ed25519 signature (RFC 8032) of data.
	Sign(ctx context.Context, data []byte) ([]byte, error)
	// KeyID names the key: the SHA-256 of its PKIX DER form, as hex.
	KeyID() (string, error)
	// Public is the key that verifies.
	Public() ed25519.PublicKey
}

// Key is an Ed25519 key pair in a file of this machine.
type Key struct{ private ed25519.PrivateKey }

// NewKey makes a key and its file: PKCS#8 in PEM, for its owner only. The
// file must not exist.
func NewKey(path string) (*Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("cannot make signing key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("cannot make signing key: %w", err)
	}
	if err := create(path, "PRIVATE KEY", der, 0o600); err != nil {
		return nil, fmt.Errorf("cannot make signing key: %w", err)
	}
	return &Key{private}, nil
}

// LoadKey reads a key that NewKey made. It refuses a file that others than
// its owner can read or change.
func LoadKey(path string) (*Key, error) {
	der, mode, err := readPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, fmt.Errorf("cannot load signing key: %w", err)
	}
	if mode.Perm()&0o077 != 0 {
		return nil, fmt.Errorf("cannot load signing key: %s is open to others (mode %04o); if none of them can have copied it run 'chmod 600 %s', else make a new key", path, mode.Perm(), path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("cannot load signing key %s: %w", path, err)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("cannot load signing key %s: it is a %T, want an Ed25519 key", path, parsed)
	}
	return &Key{private}, nil
}

// Sign implements Signer.
func (k *Key) Sign(_ context.Context, data []byte) ([]byte, error) {
	return ed25519.Sign(k.private, data), nil
}

// KeyID implements Signer.
func (k *Key) KeyID() (string, error) { return keyID(k.Public()) }

// Public implements Signer.
func (k *Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// String names the key and keeps its secret.
func (k *Key) String() string {
	id, err := k.KeyID()
	if err != nil {
		return "signing key"
	}
	return "signing key " + id
}

// GoString is String, so that no verb prints the secret.
func (k *Key) GoString() string { return k.String() }

// WritePublic makes the file by which anyone can verify: PKIX in PEM. Where
// it is there already and holds this key, nothing is done; another key's
// file stays, as its cases may need it.
func (k *Key) WritePublic(path string) error {
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		return fmt.Errorf("cannot write public key: %w", err)
	}
	err = create(path, "PUBLIC KEY", der, 0o644)
	if errors.Is(err, fs.ErrExist) {
		old, loadErr := LoadPublic(path)
		if loadErr == nil && old.Equal(k.Public()) {
			return nil
		}
		return fmt.Errorf("cannot write public key: %s holds something else; older cases may need it, so move it away first", path)
	}
	if err != nil {
		return fmt.Errorf("cannot write public key: %w", err)
	}
	return nil
}

// LoadPublic reads what WritePublic wrote.
func LoadPublic(path string) (ed25519.PublicKey, error) {
	der, _, err := readPEM(path, "PUBLIC KEY")
	if err != nil {
		return nil, fmt.Errorf("cannot load public key: %w", err)
	}
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, fmt.Errorf("cannot load public key %s: %w", path, err)
	}
	public, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("cannot load public key %s: it is a %T, want an Ed25519 key", path, parsed)
	}
	return public, nil
}

// keyID is the SHA-256 of a public key's PKIX DER form, as hex.
func keyID(public ed25519.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("cannot name key: %w", err)
	}
	return Hash(der).String(), nil
}

// create makes a PEM file that must not exist. When it returns the file is
// on the disk; where it fails there is none.
func create(path, kind string, der []byte, mode fs.FileMode) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	err = pem.Encode(file, &pem.Block{Type: kind, Bytes: der})
	if err == nil {
		err = file.Sync()
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// readPEM gives the one block of a PEM file.
func readPEM(path, kind string) (der []byte, mode fs.FileMode, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, 0, err
	}
	text, err := io.ReadAll(io.LimitReader(file, maxKeyFile))
	if err != nil {
		return nil, 0, err
	}
	block, rest := pem.Decode(text)
	if block == nil || block.Type != kind || len(bytes.TrimSpace(rest)) > 0 {
		return nil, 0, fmt.Errorf("%s is no PEM file with one %s", path, kind)
	}
	return block.Bytes, info.Mode(), nil
}
