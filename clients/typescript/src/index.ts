/** A typed client of the HTTP API; its types come from docs/openapi.json of the release. */
import createFetchClient, { type Client, type Middleware } from "openapi-fetch";
import type { components, paths } from "./api.js";

export type { components, operations, paths } from "./api.js";
export type Schemas = components["schemas"];
export type UsageEvent = paths["/api/v1/usage/events"]["post"]["requestBody"]["content"]["application/json"]["events"][number];

export interface Options {
  /** Where the service answers, such as "http://127.0.0.1:8080". */
  baseUrl: string;
  /** An API key: scope "ingest" for events, "read" for usage and invoices, "admin" for the rest. */
  apiKey: string;
  /** Replaces the global fetch, for a proxy or for tests. */
  fetch?: (request: Request) => Promise<Response>;
}

/** Every answer but 2xx: the service's problem document, or what stood in its place. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    /** The stable code of the fault, such as "invalid_request"; "" where no problem document came. */
    readonly code: string,
    message: string,
    /** What is wrong, field by field. */
    readonly errors: Schemas["FieldError"][],
    /** The seconds of Retry-After; null where the answer has none. */
    readonly retryAfterSeconds: number | null,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/**
 * GET, POST, PATCH and DELETE by path, each typed; any answer but 2xx throws an ApiError.
 * Nothing is retried here: a POST with an Idempotency-Key or with event ids may be sent again as it is.
 */
export function createClient(options: Options): Client<paths> {
  const client = createFetchClient<paths>({
    baseUrl: options.baseUrl,
    headers: { Authorization: `Bearer ${options.apiKey}` },
    ...(options.fetch === undefined ? {} : { fetch: options.fetch }),
  });
  client.use(throwProblems);
  return client;
}

const throwProblems: Middleware = {
  async onResponse({ response }) {
    if (!response.ok) throw await problemOf(response);
  },
};

async function problemOf(response: Response): Promise<ApiError> {
  const text = await response.text();
  const retryAfter = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const seconds = Number.isNaN(retryAfter) ? null : retryAfter;
  if ((response.headers.get("Content-Type") ?? "").startsWith("application/problem+json")) {
    const problem = JSON.parse(text) as Schemas["ProblemDocument"];
    return new ApiError(response.status, problem.code, problem.detail, problem.errors ?? [], seconds);
  }
  return new ApiError(response.status, "", text || response.statusText, [], seconds);
}

/** One page of a list, as every list of the API answers it. */
interface Page<Item> {
  data: Item[];
  next_cursor?: string | null;
}

/** Every item of a list, page after page: `for await (const meter of everyItem((cursor) => …))`. */
export async function* everyItem<Item>(
  readPage: (cursor: string | undefined) => Promise<{ data?: Page<Item> | undefined }>,
): AsyncGenerator<Item, void, undefined> {
  let cursor: string | undefined;
  do {
    const { data } = await readPage(cursor);
    if (data === undefined) return;
    yield* data.data;
    cursor = data.next_cursor ?? undefined;
  } while (cursor !== undefined);
}
