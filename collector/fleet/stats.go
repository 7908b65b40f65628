package fleet

// Attached counts the agents that are attached to this node.
func (f *Fleet) Attached() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.agents)
}
