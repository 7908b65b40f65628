package custody_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicklime-ir/quicklime/collector/custody"
)

func TestKeyFiles(t *testing.T) {
	dir := t.TempDir()
	path, public := filepath.Join(dir, "signing.key"), filepath.Join(dir, "verify.pub")
	made, err := custody.NewKey(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	if _, err := custody.NewKey(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a key is made over another one: %v", err)
	}
	loaded, err := custody.LoadKey(path)
	if err != nil || !loaded.Public().Equal(made.Public()) {
		t.Errorf("loaded %v (%v), want %v", loaded, err, made)
	}
	for range 2 { // the second time it is there already
		if err := loaded.WritePublic(public); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := custody.LoadPublic(public); err != nil || !got.Equal(made.Public()) {
		t.Errorf("public key: %v, %v", got, err)
	}
	if err := newKey(t).WritePublic(public); err == nil || !strings.Contains(err.Error(), "holds something else") {
		t.Errorf("another public key is written over it: %v", err)
	}
}

func TestKeyID(t *testing.T) {
	key := newKey(t)
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if id, err := key.KeyID(); err != nil || id != custody.Hash(der).String() {
		t.Errorf("key's id is %s (%v)", id, err)
	}
}

func TestKeyIsNotPrinted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	key, err := custody.NewKey(path)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	seed := block.Bytes[len(block.Bytes)-4:]
	for _, printed := range []string{fmt.Sprint(key), fmt.Sprintf("%+v", key), fmt.Sprintf("%#v", key)} {
		if strings.Contains(printed, hex.EncodeToString(seed)) || strings.Contains(printed, fmt.Sprint(seed)[1:10]) || !strings.HasPrefix(printed, "signing key ") {
			t.Errorf("printed as %s", printed)
		}
	}
}

func TestLoadKeyRefuses(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if _, err := custody.NewKey(good); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		content []byte
		mode    os.FileMode
		says    string
	}{
		"readable by all":   {text, 0o644, "run 'chmod 600"},
		"readable by group": {text, 0o640, "run 'chmod 600"},
		"writable by group": {text, 0o620, "run 'chmod 600"},
		"empty":             {nil, 0o600, "no PEM file"},
		"two keys":          {append(text[:len(text):len(text)], text...), 0o600, "no PEM file with one"},
		"garbage inside":    {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), 0o600, "cannot load signing key"},
		"another kind":      {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600, "want an Ed25519 key"},
		"public":            {pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600, "no PEM file with one PRIVATE KEY"},
	} {
		path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		if err := os.WriteFile(path, test.content, test.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, test.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := custody.LoadKey(path); err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want %s", name, err, test.says)
		}
		if _, err := custody.LoadPublic(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s as a public key: %v", name, err)
		}
	}
	if _, err := custody.LoadKey(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}
