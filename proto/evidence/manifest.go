package evidence

import "time"

// ManifestType is the predicate type of a manifest inside its in-toto
// statement. Source: in-toto attestation framework, Statement v1.
const ManifestType = "https://quicklime-ir.github.io/manifest/v1"

// Manifest is the statement of what was taken from one instance in one case:
// every object and its hashes, what is missing, and every act. The collector
// signs it; nothing in it was computed from stored bytes by the instance
// alone, as the collector recorded each hash before the bytes could be
// stored.
type Manifest struct {
	Case      string    `json:"case"`
	Made      time.Time `json:"made"`
	Instance  Instance  `json:"instance"`
	Collector Software  `json:"collector"`
	Agent     *Agent    `json:"agent,omitempty"` // nil where none answered
	// Findings are the events that the case stands on.
	Findings []Finding `json:"findings"`
	Items    []Item    `json:"items"`
	Missing  []Missing `json:"missing,omitempty"`
	Actions  []Action  `json:"actions"`
	Image    *Image    `json:"image,omitempty"` // of the disks
	// Interfaces tells each network interface's security groups before and
	// after, the latter as read back from EC2.
	Interfaces []Interface `json:"interfaces,omitempty"`
	// Journal names the last entry of the case's journal when the manifest
	// was made.
	Journal JournalHead `json:"journal"`
}

// Finding is an event that the case stands on, as it came, to the byte.
type Finding struct {
	EventID string `json:"eventId"`
	SHA256  Digest `json:"sha256"` // of Event
	Event   []byte `json:"event"`  // in JSON as base64
}

// Instance says which instance a case is about.
type Instance struct {
	ID      string `json:"id"`
	Account string `json:"account"`
	Region  string `json:"region"`
	ImageID string `json:"imageId,omitempty"`
	VPC     string `json:"vpc,omitempty"`
}

// Software is a program that took part.
type Software struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	SHA256  Digest `json:"sha256"` // of its binary
}

// Agent is the program on the instance, as it described itself.
type Agent struct {
	Software
	Hostname      string `json:"hostname"`
	KernelRelease string `json:"kernelRelease"`
	KernelVersion string `json:"kernelVersion"`
	BootID        string `json:"bootId"`
	// ClockAhead is how far the instance's clock was ahead of the
	// collector's, the network's delay included.
	ClockAhead time.Duration `json:"clockAheadNs"`
}

// Missing is a capture that did not give all it should, and why.
type Missing struct {
	Kind   Kind   `json:"kind"`
	Reason string `json:"reason"`
}

// Action is one step that was taken, and how it ended.
type Action struct {
	Step    string    `json:"step"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended"`
	Outcome string    `json:"outcome"` // done, partial, failed
	Detail  string    `json:"detail,omitempty"`
}

// Image is the AMI taken of the instance, and its snapshots.
type Image struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	State     string   `json:"state"`
	Snapshots []string `json:"snapshots"`
}

// Interface is a network interface and its security groups.
type Interface struct {
	ID     string   `json:"id"`
	Before []string `json:"before"`
	After  []string `json:"after"`
}

// JournalHead is the place of the last entry of a journal, and its hash.
type JournalHead struct {
	Entries int    `json:"entries"`
	SHA256  Digest `json:"sha256"`
}
