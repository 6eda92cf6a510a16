package pool

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
)

const (
	ownPrefix      = "bough_" // of the names that prepared statements have in the servers
	outdated       = -1       // a stmt.gen that there is not
	maxStatements  = 10_000   // of one client
	maxOnServer    = 1_000    // statements that one session keeps
	maxParse       = 16 << 20 // bytes of a Parse message with a name
	maxUnnamedKept = 16 << 10 // bytes of a Parse message without a name that are kept for a later transaction
)

// stmt is a statement that clients of a pool have prepared: its name in every session is made of its content.
type stmt struct {
	name   string // ownPrefix and a hash of key
	key    string // what follows the name in the Parse message: the query and its parameters' types
	users  int    // clients' names for it
	gen    int    // counts how often its prepared form became invalid
	effect effect // what its text says that it does to its session
	verb   verb
}

// intern finds or makes the statement for what follows the name in a Parse message.
func (p *pool) intern(key []byte) *stmt {
	if st := p.stmts[string(key)]; st != nil {
		return st
	}
	sum := sha256.Sum256(key)
	query, _, _ := cutString(key)
	st := &stmt{key: string(key), name: ownPrefix + hex.EncodeToString(sum[:16]), effect: effectOf(query), verb: verbOf(query)}
	p.stmts[st.key] = st
	return st
}

func (p *pool) release(st *stmt) {
	if st.users--; st.users == 0 && p.stmts[st.key] == st {
		delete(p.stmts, st.key)
	}
}

// define gives a statement one of the client's names and returns the one that had the name.
func (c *client) define(name string, st *stmt) (prev *stmt) {
	prev = c.stmts[name]
	if st != nil {
		st.users++
		if c.stmts == nil {
			c.stmts = map[string]*stmt{}
		}
		c.stmts[name] = st
	} else if prev != nil {
		delete(c.stmts, name)
	}
	if prev != nil {
		c.pool.release(prev)
	}
	return prev
}

func (c *client) forgetStatements() {
	for _, st := range c.stmts {
		c.pool.release(st)
	}
	c.stmts, c.unnamed = nil, nil
}

// prepared are the statements that a session has, the one used last at the front.
type prepared struct {
	byName map[string]*list.Element
	order  list.List
}

type preparedStmt struct {
	name string
	gen  int
}

// has tells whether the session has the statement in its present form, and marks it as used.
func (s *prepared) has(st *stmt) bool {
	e := s.byName[st.name]
	if e == nil || e.Value.(*preparedStmt).gen != st.gen {
		return false
	}
	s.order.MoveToFront(e)
	return true
}

// knows tells whether the session has the statement in any form.
func (s *prepared) knows(name string) bool { return s.byName[name] != nil }

// add notes that the session has a statement. A gen of outdated makes it prepare the statement again.
func (s *prepared) add(name string, gen int) {
	if s.byName == nil {
		s.byName = map[string]*list.Element{}
	}
	s.byName[name] = s.order.PushFront(&preparedStmt{name, gen})
}

func (s *prepared) remove(name string) bool {
	e := s.byName[name]
	if e != nil {
		s.order.Remove(e)
		delete(s.byName, name)
	}
	return e != nil
}

// oldest is the name of the statement to make room with, when there is none.
func (s *prepared) oldest() (name string, full bool) {
	if s.order.Len() < maxOnServer {
		return "", false
	}
	return s.order.Back().Value.(*preparedStmt).name, true
}

func (s *prepared) clear() {
	clear(s.byName)
	s.order.Init()
}
