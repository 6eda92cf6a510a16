package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// Consumption asks for the usage of projects, or of the branches of projects, in a range of time.
type Consumption struct {
	OrgID       string   // "": every organization of the caller
	ProjectIDs  []string // empty: all, of projects
	BranchIDs   []string // empty: all
	From, To    time.Time
	Granularity string // hourly, daily or monthly
	Limit       int
	Cursor      string // of the page before
}

// Consumed is the usage of one project or branch, in order of time; frames in which nothing was used may be missing.
type Consumed struct {
	ProjectID string
	BranchID  string // "" for a project
	CreatedAt time.Time
	Frames    []ConsumedFrame
}

// ConsumedFrame is one hour, day or month.
type ConsumedFrame struct {
	Start, End time.Time
	core.Usage
}

// ConsumptionPage is a page of usage.
type ConsumptionPage struct {
	List   []Consumed
	Cursor string // of the last; the cursor that was asked for when the page is empty
}

// granularities says how far back each may be asked for.
var granularities = map[string]struct {
	grain string
	days  int
}{
	"hourly":  {core.GrainHour, 7},
	"daily":   {core.GrainDay, 60},
	"monthly": {core.GrainMonth, 365},
}

// window returns the grain that is asked for, and its frames: those that begin at or after since and before until.
func (p Consumption) window(now time.Time) (grain string, since, until time.Time, err error) {
	g, ok := granularities[p.Granularity]
	if !ok {
		return "", since, until, core.Invalidf("granularity must be one of hourly, daily, monthly")
	}
	since, _ = core.Frame(g.grain, p.From)
	oldest, _ := core.Frame(g.grain, now.AddDate(0, 0, -g.days))
	switch {
	case since.Before(oldest):
		return "", since, until, outOfRange("%s consumption reaches back to %s: begin there or later, or choose a coarser granularity",
			p.Granularity, oldest.Format(time.RFC3339))
	case !p.From.Before(p.To):
		return "", since, until, outOfRange("from must be before to")
	}
	return g.grain, since, p.To.UTC(), nil
}

func outOfRange(format string, args ...any) error {
	return core.Errorf(core.KindNotAcceptable, "CONSUMPTION_RANGE", format, args...)
}

// organizations are those whose usage the caller asks for.
func (p Consumption) organizations(c core.Caller) ([]string, error) {
	if err := apart(c); err != nil {
		return nil, err
	}
	if p.OrgID == "" {
		return c.OrgIDs, nil
	}
	if !slices.Contains(c.OrgIDs, p.OrgID) {
		return nil, core.NotFoundf("organization %q not found", clip(p.OrgID))
	}
	return []string{p.OrgID}, nil
}

// ProjectConsumption returns a page of what projects used, the newest projects first.
func (s *Service) ProjectConsumption(ctx context.Context, c core.Caller, p Consumption) (ConsumptionPage, error) {
	return s.consumption(ctx, c, p, 100, func(orgs []string, limit int) ([]store.UsageOwner, error) {
		var after store.UsageOwner
		if at, id, ok := strings.Cut(p.Cursor, "_"); ok {
			micros, err := strconv.ParseInt(at, 10, 64)
			if err != nil || !core.ValidID(id) {
				return nil, badCursor()
			}
			after = store.UsageOwner{ProjectID: id, CreatedAt: time.UnixMicro(micros)}
		} else if p.Cursor != "" {
			return nil, badCursor()
		}
		return s.Store.UsageProjects(ctx, orgs, p.ProjectIDs, after, limit)
	})
}

// BranchConsumption returns a page of what the branches of projects used, ordered by project and branch.
func (s *Service) BranchConsumption(ctx context.Context, c core.Caller, p Consumption) (ConsumptionPage, error) {
	return s.consumption(ctx, c, p, 1000, func(orgs []string, limit int) ([]store.UsageOwner, error) {
		project, branch, ok := strings.Cut(p.Cursor, "_")
		if p.Cursor != "" && (!ok || !core.ValidID(project) || !core.ValidID(branch)) {
			return nil, badCursor()
		}
		return s.Store.UsageBranches(ctx, orgs, p.ProjectIDs, p.BranchIDs, store.UsageOwner{ProjectID: project, BranchID: branch}, limit)
	})
}

func badCursor() error {
	return core.Invalidf("cursor is not one that this list returned; start again without it")
}

// consumption returns the usage of a page of owners.
func (s *Service) consumption(ctx context.Context, c core.Caller, p Consumption, most int, list func(orgs []string, limit int) ([]store.UsageOwner, error)) (ConsumptionPage, error) {
	page := ConsumptionPage{Cursor: p.Cursor}
	orgs, err := p.organizations(c)
	if err != nil {
		return page, err
	}
	limit := cmp.Or(p.Limit, most/10)
	if limit < 1 || limit > most {
		return page, core.Invalidf("limit must be between 1 and %d", most)
	}
	for _, id := range slices.Concat(p.ProjectIDs, p.BranchIDs) {
		if !core.ValidID(id) {
			return page, core.Invalidf("%q is not an id", clip(id))
		}
	}
	if len(p.ProjectIDs) > 100 || len(p.BranchIDs) > 100 {
		return page, core.Invalidf("at most 100 ids can be asked for at once")
	}
	grain, since, until, err := p.window(time.Now())
	if err != nil {
		return page, err
	}
	owners, err := list(orgs, limit)
	if err != nil {
		return page, err
	}
	frames, err := s.Store.UsageHistory(ctx, owners, grain, since, until)
	if err != nil {
		return page, err
	}
	place := make(map[[2]string]int, len(owners))
	for i, o := range owners {
		place[[2]string{o.ProjectID, o.BranchID}] = i
		page.List = append(page.List, Consumed{ProjectID: o.ProjectID, BranchID: o.BranchID, CreatedAt: o.CreatedAt})
		if page.Cursor = o.ProjectID + "_" + o.BranchID; o.BranchID == "" {
			page.Cursor = fmt.Sprintf("%d_%s", o.CreatedAt.UnixMicro(), o.ProjectID)
		}
	}
	for _, f := range frames {
		of := &page.List[place[[2]string{f.ProjectID, f.BranchID}]]
		_, end := core.Frame(grain, f.Start)
		of.Frames = append(of.Frames, ConsumedFrame{Start: f.Start, End: end, Usage: f.Usage})
	}
	return page, nil
}
