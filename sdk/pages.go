package sdk

import (
	"context"
	"iter"
	"time"

	"github.com/boughdb/bough/api"
)

// ProjectFilter narrows a list of projects; the zero value keeps all that the key can see.
type ProjectFilter struct {
	OrgID    string // of this organization
	Search   string // name or id contains this
	PageSize int    // 1–400, default 100
}

// BranchFilter narrows and orders a list of branches.
type BranchFilter struct {
	Search   string // name or id contains this
	SortBy   api.BranchSortField
	Order    api.SortOrder
	PageSize int // 1–10000, default 1000
}

// OperationFilter sizes the pages of a list of operations.
type OperationFilter struct {
	PageSize int // 1–1000, default 100
}

// ConsumptionFilter chooses whose consumption is shown, and of which time.
type ConsumptionFilter struct {
	ProjectIDs  []string // at most 100; empty: all that the key can see
	OrgID       string   // of this organization
	From, To    time.Time
	Granularity string // hourly (a week back), daily (60 days) or monthly (a year)
	PageSize    int    // 1–100, default 100
}

// pages yields the items of one page after the other. A page is fetched when its first item is asked for. After an
// error, yielded once with a zero item, the sequence ends.
func pages[T any](fetch func(cursor *string) (items []T, next string, err error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var cursor *string
		for {
			items, next, err := fetch(cursor)
			if err != nil {
				yield(*new(T), err)
				return
			}
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			// The same cursor twice would never end.
			if len(items) == 0 || next == "" || (cursor != nil && *cursor == next) {
				return
			}
			cursor = &next
		}
	}
}

// All collects a sequence. On an error it returns what came before it too.
func All[T any](seq iter.Seq2[T, error]) ([]T, error) {
	items := []T{} // encodes to [] in JSON
	for item, err := range seq {
		if err != nil {
			return items, err
		}
		items = append(items, item)
	}
	return items, nil
}

// Projects iterates over the projects that the key can see, ordered by id.
func (c *Client) Projects(ctx context.Context, f ProjectFilter) iter.Seq2[ProjectListItem, error] {
	return pages(func(cursor *string) ([]ProjectListItem, string, error) {
		p := &api.ListProjectsParams{Cursor: cursor, Limit: size(f.PageSize, 100), OrgID: opt(f.OrgID), Search: opt(f.Search)}
		out, err := answer[api.ProjectList](c.api.ListProjects(ctx, p))
		if err != nil {
			return nil, "", err
		}
		return out.Projects, cursorOf(out.Pagination), nil
	})
}

// SharedProjects iterates over the projects of others that are shared with the calling user, ordered by id.
func (c *Client) SharedProjects(ctx context.Context, f ProjectFilter) iter.Seq2[ProjectListItem, error] {
	return pages(func(cursor *string) ([]ProjectListItem, string, error) {
		p := &api.ListSharedProjectsParams{Cursor: cursor, Limit: size(f.PageSize, 100), Search: opt(f.Search)}
		out, err := answer[api.SharedProjectList](c.api.ListSharedProjects(ctx, p))
		if err != nil {
			return nil, "", err
		}
		return out.Projects, cursorOf(out.Pagination), nil
	})
}

// Branches iterates over a project's branches, by default the last changed first.
func (c *Client) Branches(ctx context.Context, projectID string, f BranchFilter) iter.Seq2[Branch, error] {
	return pages(func(cursor *string) ([]Branch, string, error) {
		if err := need("project id", projectID); err != nil {
			return nil, "", err
		}
		p := &api.ListProjectBranchesParams{Cursor: cursor, Limit: size(f.PageSize, 1000), Search: opt(f.Search),
			SortBy: opt(f.SortBy), SortOrder: opt(f.Order)}
		out, err := answer[api.BranchList](c.api.ListProjectBranches(ctx, projectID, p))
		if err != nil {
			return nil, "", err
		}
		next := ""
		if out.Pagination != nil && out.Pagination.Next != nil {
			next = *out.Pagination.Next
		}
		return out.Branches, next, nil
	})
}

// Operations iterates over a project's operations, the newest first.
func (c *Client) Operations(ctx context.Context, projectID string, f OperationFilter) iter.Seq2[Operation, error] {
	return pages(func(cursor *string) ([]Operation, string, error) {
		if err := need("project id", projectID); err != nil {
			return nil, "", err
		}
		p := &api.ListProjectOperationsParams{Cursor: cursor, Limit: size(f.PageSize, 100)}
		out, err := answer[api.OperationList](c.api.ListProjectOperations(ctx, projectID, p))
		if err != nil {
			return nil, "", err
		}
		return out.Operations, cursorOf(out.Pagination), nil
	})
}

// Consumption iterates over what projects used, the newest projects first.
func (c *Client) Consumption(ctx context.Context, f ConsumptionFilter) iter.Seq2[ProjectConsumption, error] {
	return pages(func(cursor *string) ([]ProjectConsumption, string, error) {
		p := &api.GetConsumptionHistoryPerProjectParams{
			Cursor: cursor, Limit: size(f.PageSize, 100), OrgID: opt(f.OrgID), From: f.From, To: f.To,
			Granularity: api.GetConsumptionHistoryPerProjectParamsGranularity(f.Granularity),
		}
		if len(f.ProjectIDs) > 0 {
			p.ProjectIds = &f.ProjectIDs
		}
		out, err := answer[api.ConsumptionPerProject](c.api.GetConsumptionHistoryPerProject(ctx, p))
		if err != nil {
			return nil, "", err
		}
		return out.Projects, cursorOf(out.Pagination), nil
	})
}

func cursorOf(p *api.Pagination) string {
	if p == nil {
		return ""
	}
	return p.Cursor
}

func size(n, byDefault int) *int {
	if n == 0 {
		n = byDefault
	}
	return &n
}

// opt is nil for an empty value, which leaves a parameter out.
func opt[T ~string](v T) *T {
	if v == "" {
		return nil
	}
	return &v
}
