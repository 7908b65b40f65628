package finding

import (
	"fmt"
	"strings"
	"unicode"
)

// Verdict is what to do about a finding.
type Verdict struct {
	Act     bool     // true: a case per target; false: notify only
	Targets []Target // whom to act on; empty unless Act
	Reason  string   // for people, one sentence; may quote the finding, so escape it
}

// Triage says whether to act on f, and on which instances. It acts on findings
// about machines (Instance, Container, EKSCluster, ECSCluster) and on the
// machines of an attack sequence. It does not act on findings about keys,
// buckets, databases or functions: such a finding describes the instance whose
// credentials were used, which need not be the one that was broken into.
func Triage(f *Finding, threshold float64) Verdict {
	switch kind := kindOf(f.ResourceType); {
	case f.Sample:
		return notify("a sample finding, never acted on")
	case !(f.Severity >= threshold):
		return notify("severity %g is below the threshold %g", f.Severity, threshold)
	case kind == kindOther && len(f.Targets) > 0:
		return notify("a finding about %s, which is not a machine; it names %s, whose credentials may have been used",
			f.ResourceType, names(f.Targets))
	case kind == kindOther:
		return notify("a finding about %s, which is not an EC2 instance", f.ResourceType)
	case len(f.Targets) == 0:
		return notify("a finding about %s that names no EC2 instance%s", f.ResourceType, unread(f))
	default:
		return Verdict{Act: true, Targets: append([]Target(nil), f.Targets...),
			Reason: fmt.Sprintf("severity %g on %s%s", f.Severity, names(f.Targets), unread(f))}
	}
}

func notify(format string, args ...any) Verdict {
	return Verdict{Reason: fmt.Sprintf(format, args...)}
}

// names lists up to five instances.
func names(targets []Target) string {
	var ids []string
	for i, t := range targets {
		if i == 5 {
			ids = append(ids, fmt.Sprintf("%d more", len(targets)-i))
			break
		}
		ids = append(ids, t.InstanceID)
	}
	return strings.Join(ids, ", ")
}

// unread says what Triage had to leave out, so that no machine is dropped in silence.
func unread(f *Finding) string {
	if len(f.Unread) == 0 {
		return ""
	}
	return fmt.Sprintf("; %d names could not be read, the first is %q", len(f.Unread), f.Unread[0])
}

type kind int

const (
	kindOther kind = iota
	kindMachine
	kindSequence
)

// kindOf sorts resource types. The event, the console and the attack sequence
// spell them differently (EKSCluster, "EKS cluster", EC2_INSTANCE), so only
// letters and digits count.
func kindOf(resourceType string) kind {
	plain := strings.Map(func(r rune) rune {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			return -1
		}
		return unicode.ToLower(r)
	}, resourceType)
	switch plain {
	case "instance", "ec2instance", "awsec2instance", "container", "ekscluster", "ecscluster":
		return kindMachine
	case "attacksequence":
		return kindSequence
	default:
		return kindOther
	}
}
