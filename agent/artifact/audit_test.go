package artifact

import (
	"bytes"
	"compress/gzip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseAudit(t *testing.T) {
	at := time.Unix(1_700_000_000, 123_000_000).UTC()
	for line, want := range map[string]*AuditRecord{
		`type=PROCTITLE msg=audit(1700000000.123:42): proctitle=6C73002D6C`: {Type: "PROCTITLE", Time: at, Serial: 42, Fields: map[Text]Text{"proctitle": "ls\x00-l"}},
		`type=EXECVE msg=audit(1700000000.123:42): argc=3 a0="sh" a1=2D6320FF a2[0]=6162`: {Type: "EXECVE", Time: at, Serial: 42,
			Fields: map[Text]Text{"argc": "3", "a0": "sh", "a1": "-c \xff", "a2[0]": "ab"}},
		"node=web type=SYSCALL msg=audit(1700000000.123:42): syscall=59 a0=55 a1=66 uid=0 comm=\"x\" key=(null)\x1dARCH=x86_64 uid=\"root\"": {Node: "web", Type: "SYSCALL", Time: at, Serial: 42,
			Fields: map[Text]Text{"syscall": "59", "a0": "55", "a1": "66", "uid": "0", "comm": "x", "key": "(null)", "ARCH": "x86_64"}, More: []Text{"uid=root"}},
		`type=USER_LOGIN msg=audit(1700000000.123:42): pid=7 msg='op=login acct="root" addr=203.0.113.9 res=failed'`: {Type: "USER_LOGIN", Time: at, Serial: 42,
			Fields: map[Text]Text{"pid": "7", "op": "login", "acct": "root", "addr": "203.0.113.9", "res": "failed"}},
		`type=X msg=audit(x:1): a=b`: nil,
		`something else`:             nil,
		``:                           nil,
	} {
		if diff := cmp.Diff(want, parseAudit([]byte(line))); diff != "" {
			t.Errorf("%s: %s", line, diff)
		}
	}
}

func TestAuditReadsRotations(t *testing.T) {
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	w.Write([]byte("type=B msg=audit(1.0:1): x=1\n"))
	w.Close()
	root := t.TempDir()
	place(t, root, map[string]string{
		"var/log/audit/audit.log":      "type=A msg=audit(2.0:2): x=1\nbroken\n",
		"var/log/audit/audit.log.1.gz": packed.String(),
		"var/log/audit/audit.log.2.gz": packed.String()[:packed.Len()-6],
	})
	got, record := table[AuditRecord](t, &Host{Root: root}, "audit")
	kinds := map[Text]int{}
	for _, row := range got {
		kinds[row.Type]++
	}
	if diff := cmp.Diff(map[Text]int{"A": 1, "B": 2}, kinds); diff != "" {
		t.Error(diff)
	}
	if e := find(t, record, "/var/log/audit/audit.log"); e.Note != NoteOdd {
		t.Errorf("on record is %+v", e)
	}
	if e := find(t, record, "/var/log/audit/audit.log.2.gz"); e.Error == "" {
		t.Errorf("on record is %+v", e)
	}
}

func FuzzAudit(f *testing.F) {
	f.Add([]byte(`type=USER_LOGIN msg=audit(1700000000.123:42): pid=7 msg='op=login acct="root" msg='x' res=failed'`))
	f.Add([]byte("type=EXECVE msg=audit(1.0:1): a0=2D63 a1=\"x\"\x1da0=1"))
	f.Fuzz(func(t *testing.T, line []byte) {
		row := parseAudit(line)
		if row == nil {
			return
		}
		if len(row.Fields)+len(row.More) > maxAuditFields {
			t.Error("unbounded fields")
		}
		if _, err := row.Time.MarshalJSON(); err != nil {
			t.Error(err)
		}
	})
}
