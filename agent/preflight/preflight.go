// Package preflight says before an incident whether this host could be
// captured, by what, and if not, why.
//
// It changes nothing on the host: it looks, and where it is told to, it
// knocks at the collector's and at S3's door.
package preflight

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicklime-ir/quicklime/agent/memory"
	"github.com/quicklime-ir/quicklime/proto/iomem"
)

// knockLimit bounds a try to reach somebody.
const knockLimit = 5 * time.Second

// Verdict is what all of it comes to.
type Verdict string

// The verdicts.
const (
	Ready    Verdict = "ready"
	Degraded Verdict = "degraded" // something is missing, but not all
	Unable   Verdict = "unable"   // memory cannot be taken, or nobody reached
)

// Options say what to look at.
type Options struct {
	Memory     memory.Options
	Collectors []string // HOST:PORT of each of its nodes, of which one suffices
	S3         string   // https://ENDPOINT; "" is not tried
}

// Report is what was found.
type Report struct {
	Verdict  Verdict          `json:"verdict"`
	Reasons  []string         `json:"reasons,omitempty"` // why it is not ready
	Kernel   string           `json:"kernel"`
	RAMBytes uint64           `json:"ramBytes,omitempty"` // 0 where it is hidden
	Memory   []memory.Verdict `json:"memorySources"`
	Lockdown string           `json:"lockdown"` // as the kernel writes it
	Lacking  []string         `json:"lackingCapabilities,omitempty"`
	// KptrRestrict is kernel.kptr_restrict; 2 hides the kernel's symbols from
	// all, and "" is not known.
	KptrRestrict string  `json:"kptrRestrict,omitempty"`
	Reach        []Reach `json:"reach,omitempty"`
}

// Reach is whether somebody could be reached.
type Reach struct {
	Who   string        `json:"who"`
	OK    bool          `json:"ok"`
	Error string        `json:"error,omitempty"`
	Took  time.Duration `json:"tookNs"`
}

// needed are the capabilities that a full capture needs, and for what.
// Source: capabilities(7).
var needed = []struct {
	bit  int
	name string
	why  string
}{
	{unix.CAP_SYS_RAWIO, "CAP_SYS_RAWIO", "to read /proc/kcore"},
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "to see physical addresses in /proc/iomem"},
	{unix.CAP_SYS_MODULE, "CAP_SYS_MODULE", "to load LiME"},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "to read other users' processes"},
	{unix.CAP_DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH", "to read other users' files"},
	{unix.CAP_SYSLOG, "CAP_SYSLOG", "to see kernel symbols"},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "to see all that the kernel knows of sockets"},
}

// Check looks at this host.
func Check(ctx context.Context, o Options) Report {
	r := Report{Verdict: Ready, Kernel: line("/proc/sys/kernel/osrelease"), Lockdown: line("/sys/kernel/security/lockdown"), Memory: memory.Probe(ctx, o.Memory)}
	if r.Lockdown == "" {
		r.Lockdown = "not known: securityfs is not mounted, or the kernel has no lockdown"
	}
	effective := capabilities(fieldOf("/proc/self/status", "CapEff:"))
	for _, c := range needed {
		if effective&(1<<c.bit) == 0 {
			r.Lacking = append(r.Lacking, c.name)
			r.mind(Degraded, "%s is lacking, %s", c.name, c.why)
		}
	}
	if r.KptrRestrict = line("/proc/sys/kernel/kptr_restrict"); r.KptrRestrict == "2" {
		r.mind(Degraded, "kernel.kptr_restrict is 2, which hides kernel symbols from all: set it to 1")
	}
	usable := 0
	for _, v := range r.Memory {
		if v.Usable {
			usable++
		}
	}
	switch {
	case usable == 0:
		r.mind(Unable, "no memory source can be used")
	case usable < len(r.Memory):
		r.mind(Degraded, "only %d of %d memory sources can be used", usable, len(r.Memory))
	}
	if f, err := os.Open("/proc/iomem"); err == nil {
		defer f.Close()
		if ranges, err := iomem.SystemRAM(f); err == nil {
			for _, x := range ranges {
				r.RAMBytes += x.Len()
			}
		}
	}
	r.knock(ctx, o.Collectors)
	if o.S3 != "" {
		r.reach(ctx, Unable, "S3 "+o.S3, func(ctx context.Context) error { return ask(ctx, o.S3) })
	}
	return r
}

// mind notes a reason; the verdict never gets better.
func (r *Report) mind(v Verdict, format string, args ...any) {
	r.Reasons = append(r.Reasons, fmt.Sprintf(format, args...))
	if v == Unable || r.Verdict == Ready {
		r.Verdict = v
	}
}

// knock tries the collector's nodes. Without one of several it goes on, less
// safely; without all it does not.
func (r *Report) knock(ctx context.Context, collectors []string) {
	before := len(r.Reach)
	for _, address := range collectors {
		r.reach(ctx, Degraded, "collector "+address, func(ctx context.Context) error { return dial(ctx, address) })
	}
	if len(collectors) > 0 && !slices.ContainsFunc(r.Reach[before:], func(one Reach) bool { return one.OK }) {
		r.Verdict = Unable
	}
}

// reach tries one; without it the verdict is v.
func (r *Report) reach(ctx context.Context, v Verdict, who string, try func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, knockLimit)
	defer cancel()
	began := time.Now()
	err := try(ctx)
	one := Reach{Who: who, OK: err == nil, Took: time.Since(began)}
	if err != nil {
		one.Error = err.Error()
		r.mind(v, "%s cannot be reached: %v", who, err)
	}
	r.Reach = append(r.Reach, one)
}

func dial(ctx context.Context, address string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// ask wants any HTTP answer: S3 says 403 to strangers, and is there.
func ask(ctx context.Context, endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%q is no https:// address", endpoint)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, u.String(), nil)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	return answer.Body.Close()
}

// WriteText writes the report for a person.
func (r Report) WriteText(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "verdict\t%s\n", r.Verdict)
	for _, reason := range r.Reasons {
		fmt.Fprintf(t, "\t%s\n", reason)
	}
	fmt.Fprintf(t, "kernel\t%s\nlockdown\t%s\n", r.Kernel, r.Lockdown)
	if r.KptrRestrict != "" {
		fmt.Fprintf(t, "kptr_restrict\t%s\n", r.KptrRestrict)
	}
	if r.RAMBytes > 0 {
		fmt.Fprintf(t, "RAM\t%d MiB\n", r.RAMBytes>>20)
	}
	for _, v := range r.Memory {
		if v.Usable {
			fmt.Fprintf(t, "source %s\tusable\n", v.Source)
			continue
		}
		fmt.Fprintf(t, "source %s\t%s: %s\n", v.Source, v.Reason, v.Detail)
	}
	for _, one := range r.Reach {
		if one.OK {
			fmt.Fprintf(t, "%s\treached in %v\n", one.Who, one.Took.Round(time.Millisecond))
			continue
		}
		fmt.Fprintf(t, "%s\t%s\n", one.Who, one.Error)
	}
	return t.Flush()
}

func line(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	first, _, _ := strings.Cut(string(b), "\n")
	return first
}

// fieldOf gives what stands after a name at the beginning of a line.
func fieldOf(path, name string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for one := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(one, name); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// capabilities reads a set as /proc/PID/status prints it.
func capabilities(hex string) uint64 {
	set, err := strconv.ParseUint(hex, 16, 64)
	if err != nil {
		return 0
	}
	return set
}
