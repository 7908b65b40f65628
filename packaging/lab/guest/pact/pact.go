// Package pact is what the lab and the guest's first process agree on: the
// orders packed into the initramfs, the reports on the serial line, and the
// marks of the planted intrusion. It exists so that the lab can compute, without
// asking the guest, which bytes a memory image of that guest must hold.
package pact

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Places and numbers fixed for every guest.
const (
	OrdersPath   = "/.lab/orders.json"                // read once by init, then removed with its folder
	SecondOrders = "/run/quicklime-lab/orders.json"   // the same in a Debian of the guest's own, for the service there
	AgentPath    = "/usr/bin/quicklime-agent"         // the agent, started and restarted by init
	ModulesDir   = "/usr/lib/quicklime/modules"       // RELEASE/lime.ko below it, where the agent looks
	Hideout      = "/tmp/.X11-unix/.cache"            // where the intruder's program was, before it was unlinked
	IntruderExe  = Hideout + "/kworker"               // its /proc/PID/exe is this and " (deleted)"
	IntruderName = "[kworker/u4:2]"                   // its argv[0], a disguise seen in the wild
	MarkerEnv    = "QUICKLIME_MARKER"                 // the environment variable that carries Marker(seed)
	ListenPort   = 31337                              // the intruder's listening socket, 0.0.0.0
	HostLoopback = "10.0.2.2"                         // the host's 127.0.0.1 as seen from the guest
	Address      = "10.0.2.15"                        // the guest's own address on eth0
	SeedSize     = sha256.Size                        // bytes of seed in Orders
	PageSize     = 4096                               // bytes of a page on amd64
	MarkerPages  = 8                                  // whole pages of derived bytes that the intruder keeps locked in RAM
	maxLine      = 64 << 10                           // longest line on the serial line, either way
	pageLabel    = "quicklime lab page v1\x00"        // separates Page's stream from Marker's
	markerLabel  = "quicklime lab environment v1\x00" // separates Marker's bytes from Page's
)

// Verbs that init obeys on the serial line.
const (
	VerbKillAgent = "kill-agent" // SIGKILL the agent; init starts it again after a second. Answer: its pid.
	VerbAgent     = "agent"      // answer: "PID STARTS", pid 0 while it is down
	VerbRun       = "run"        // run a program as root. Answer: its output, in KindOutput reports, then its exit code.
	VerbPowerOff  = "poweroff"   // halt the guest; answered before it goes down
)

// MaxOutput bounds what a program that VerbRun starts may write, in bytes.
const MaxOutput = 1 << 20

// ErrLongLine is returned for a line of more than 64 KiB.
var ErrLongLine = errors.New("line is longer than 64 KiB")

// Orders is what the lab packs for init. It carries the seed, so init removes
// it before anything else runs: the marks must be in memory only because the
// intruder put them there.
type Orders struct {
	Seed     []byte   `json:"seed"`     // SeedSize random bytes
	Hostname string   `json:"hostname"` // as in /etc/hostname
	Modules  []string `json:"modules"`  // absolute paths of kernel modules, in load order
	Beacon   string   `json:"beacon"`   // host:port that the intruder keeps a connection to
	Args     []string `json:"args"`     // the agent's arguments, without its name
	Env      []string `json:"env"`      // the agent's environment, KEY=value
	// Root is the disk of a whole Debian to go on in, "" to stay; Carry are
	// the files to take along.
	Root  string   `json:"root,omitempty"`
	Carry []string `json:"carry,omitempty"`
}

// Kinds of Report.
const (
	KindFacts  = "facts"  // once, when the intrusion stands and before the agent starts
	KindAgent  = "agent"  // the agent started or ended; Text says which
	KindOutput = "output" // Data is the next piece of what the command with the same ID wrote
	KindReply  = "reply"  // answer to the command with the same ID
	KindFault  = "fault"  // init cannot go on; Text says why, then it powers off
)

// MaxPiece bounds Data, in bytes: in base64 it must fit a line.
const MaxPiece = 32 << 10

// Report is one line from the guest.
type Report struct {
	Kind  string    `json:"kind"`
	ID    int       `json:"id,omitempty"`
	Text  string    `json:"text,omitempty"`
	Error string    `json:"error,omitempty"`
	Data  []byte    `json:"data,omitempty"`
	Exit  int       `json:"exit,omitempty"` // of VerbRun's program; 128 and the signal's number where one ended it
	Facts *Standing `json:"facts,omitempty"`
}

// Standing is what only the guest can know, told before the agent starts.
type Standing struct {
	Release     string `json:"release"`      // uname -r
	Version     string `json:"version"`      // /proc/version, one line
	BootID      string `json:"boot_id"`      // /proc/sys/kernel/random/boot_id
	IOMem       string `json:"iomem"`        // /proc/iomem, whole
	IntruderPID int    `json:"intruder_pid"` // the process whose program was unlinked
	IntruderExe string `json:"intruder_exe"` // its /proc/PID/exe, ends in " (deleted)"
	Listen      string `json:"listen"`       // its listening socket
	BeaconFrom  string `json:"beacon_from"`  // its end of the outbound connection
}

// Command is one line to the guest.
type Command struct {
	ID    int           `json:"id"`
	Verb  string        `json:"verb"`
	Argv  []string      `json:"argv,omitempty"`  // of VerbRun: an absolute path and the arguments
	Limit time.Duration `json:"limit,omitempty"` // of VerbRun: then the program and its children are killed
}

// Write sends v as one line of JSON in a single Write call.
func Write(w io.Writer, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("cannot encode a serial line: %w", err)
	}
	if len(line) >= maxLine {
		return fmt.Errorf("cannot send %d bytes on the serial line: %w", len(line), ErrLongLine)
	}
	if _, err := w.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("cannot write to the serial line: %w", err)
	}
	return nil
}

// Lines returns a reader's lines. The scanner stops with bufio.ErrTooLong at a
// line of more than 64 KiB.
func Lines(r io.Reader) *bufio.Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxLine)
	return s
}

// Decode reads one line into v and refuses unknown fields: both ends are built
// from one source, so a stranger's field means that the line was damaged.
func Decode(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("cannot read a serial line of %d bytes: %w", len(line), err)
	}
	if d.More() {
		return fmt.Errorf("cannot read a serial line of %d bytes: bytes follow the object", len(line))
	}
	return nil
}

// Marker is the value of MarkerEnv: 48 characters that no other process has.
func Marker(seed []byte) string {
	sum := sha256.Sum256(append([]byte(markerLabel), seed...))
	return "ql-" + hex.EncodeToString(sum[:])[:45]
}

// FillPage writes marker page n into page, 4096 bytes: SHA-256 of label, seed,
// page and block number, block by block. Nothing but the blocks passes through
// other memory, so the page as a whole exists once.
func FillPage(page, seed []byte, n int) {
	input := append([]byte(pageLabel), seed...)
	input = binary.LittleEndian.AppendUint32(input, uint32(n))
	input = binary.LittleEndian.AppendUint32(input, 0)
	for at := 0; at+sha256.Size <= len(page); at += sha256.Size {
		binary.LittleEndian.PutUint32(input[len(input)-4:], uint32(at))
		sum := sha256.Sum256(input)
		copy(page[at:], sum[:])
	}
}
