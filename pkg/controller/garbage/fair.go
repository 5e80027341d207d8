package garbage

// fair is the order in which the collector works: the virtual clusters take turns, so
// that one that deletes much delays no other. Within each, first come, first served. It
// is a workqueue.Queue, and locked by the workqueue.
type fair struct {
	waiting map[string][]key
	turns   []string // the virtual clusters that wait, next first
	length  int
}

func newFair() *fair { return &fair{waiting: map[string][]key{}} }

// Touch implements workqueue.Queue.
func (f *fair) Touch(key) {}

// Push implements workqueue.Queue.
func (f *fair) Push(k key) {
	if len(f.waiting[k.cluster]) == 0 {
		f.turns = append(f.turns, k.cluster)
	}
	f.waiting[k.cluster] = append(f.waiting[k.cluster], k)
	f.length++
}

// Len implements workqueue.Queue.
func (f *fair) Len() int { return f.length }

// Pop implements workqueue.Queue.
func (f *fair) Pop() key {
	cluster := f.turns[0]
	f.turns = f.turns[1:]
	first, rest := f.waiting[cluster][0], f.waiting[cluster][1:]
	if len(rest) == 0 {
		delete(f.waiting, cluster)
	} else {
		f.waiting[cluster] = rest
		f.turns = append(f.turns, cluster)
	}
	f.length--
	return first
}
