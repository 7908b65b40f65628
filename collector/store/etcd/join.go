package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Join is what a new node has to know: Store.Join makes it on a node of the
// cluster, and Config takes it on the new one.
type Join struct {
	Name  string   `json:"name"`  // of the new node
	URL   string   `json:"url"`   // of the new node
	Nodes []Joined `json:"nodes"` // all of the cluster, the new one too
}

// Joined is a node that a Join names.
type Joined struct {
	Name string `json:"name"`
	URL  string `json:"url"`
}

// maxNodes bounds a cluster. etcd advises seven at most.
const maxNodes = 9

var nodeName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// CheckName refuses what no node may be called.
func CheckName(name string) error {
	if !nodeName.MatchString(name) {
		return fmt.Errorf("cannot call a node %.80q: want 1 to 100 letters, digits and \"._-\", a letter or digit first", name)
	}
	return nil
}

// ParseJoin reads what Join has made, as JSON.
func ParseJoin(raw []byte) (*Join, error) {
	var j Join
	if err := json.Unmarshal(raw, &j); err != nil {
		return nil, fmt.Errorf("cannot read join document: %w", err)
	}
	if err := j.check(); err != nil {
		return nil, fmt.Errorf("cannot use join document: %w", err)
	}
	return &j, nil
}

func (j *Join) check() error {
	if len(j.Nodes) < 2 || len(j.Nodes) > maxNodes {
		return fmt.Errorf("it names %d nodes, want 2 to %d", len(j.Nodes), maxNodes)
	}
	names, urls := map[string]bool{}, map[string]bool{}
	for _, n := range j.Nodes {
		if err := CheckName(n.Name); err != nil {
			return err
		}
		if _, err := parseURL(n.URL); err != nil {
			return err
		}
		names[n.Name], urls[n.URL] = true, true
	}
	if len(names) < len(j.Nodes) || len(urls) < len(j.Nodes) || !slices.Contains(j.Nodes, Joined{j.Name, j.URL}) {
		return errors.New("its nodes are not all different, or the new one is not among them")
	}
	return nil
}

// explainBegin says why a member was never begun.
func (c Config) explainBegin(err error) error {
	if told := c.Peer.explainListen(err); told != nil {
		return told
	}
	if c.Join == nil {
		return err
	}
	return fmt.Errorf("cannot join the cluster of %s: see that they run and can be reached from here, and that nobody has joined or left since this join document was made; 'cluster join' makes a new one: %w", c.Join.others(), err)
}

// others names the nodes that are there already.
func (j *Join) others() string {
	var urls []string
	for _, n := range j.Nodes {
		if n.Name != j.Name {
			urls = append(urls, n.URL)
		}
	}
	return strings.Join(urls, ", ")
}

// initial puts the nodes into etcd's words.
func (j *Join) initial() string {
	var all []string
	for _, n := range j.Nodes {
		all = append(all, n.Name+"="+n.URL)
	}
	return strings.Join(all, ",")
}

// check refuses a configuration that does not fit together.
func (c Config) check() error {
	if err := CheckName(c.Name); err != nil {
		return err
	}
	if c.Peer != nil {
		if err := c.Peer.check(); err != nil {
			return err
		}
	}
	if c.Join == nil || HasMember(c.Dir) {
		return nil
	}
	if err := c.Join.check(); err != nil {
		return fmt.Errorf("cannot use join document: %w", err)
	}
	if c.Peer == nil || c.Join.Name != c.Name || c.Join.URL != c.Peer.URL {
		return fmt.Errorf("the join document is for node %s at %s: start that one with it, and with its address and certificates for other nodes", c.Join.Name, c.Join.URL)
	}
	return nil
}
