package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
)

// A record is how a file keeps a value: one line for whoever looks with a
// pager, and then the value itself.
//
//	quicklime-store 1 REVISION SHA256 KEY\n
//	VALUE
//
// The SHA-256 is over the revision, the key and the value, so a file that is
// torn, altered, or moved under another key is found out.
const magic = "quicklime-store 1 "

// maxHeader bounds the line, in bytes.
const maxHeader = len(magic) + 20 + 1 + 64 + 1 + maxKey + 1

var errTorn = errors.New("it is damaged (torn write, or changed by another program); restore it from a copy of the folder")

func encodeRecord(key string, value []byte, revision int64) []byte {
	return append(header(key, value, revision), value...)
}

func header(key string, value []byte, revision int64) []byte {
	return fmt.Appendf(nil, "%s%d %s %s\n", magic, revision, sum(key, value, revision), key)
}

// decodeRecord gives what a record holds, if it is whole and of this key.
func decodeRecord(key string, raw []byte) (value []byte, revision int64, err error) {
	line, value, ok := bytes.Cut(raw, []byte("\n"))
	fields := bytes.Split(line, []byte(" "))
	if !ok || len(line) >= maxHeader || len(fields) != 5 {
		return nil, 0, errTorn
	}
	revision, err = strconv.ParseInt(string(fields[2]), 10, 64)
	if err != nil || revision < 1 {
		return nil, 0, errTorn
	}
	if !bytes.Equal(raw[:len(line)+1], header(key, value, revision)) {
		return nil, 0, errTorn
	}
	return value, revision, nil
}

// sum is the hash over all that a record says. Neither a revision nor a key
// holds a newline, so no two records have the same text.
func sum(key string, value []byte, revision int64) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d\n%s\n", revision, key)
	h.Write(value)
	return hex.EncodeToString(h.Sum(nil))
}
